# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_atelier_global_optspecs
    string join \n config= h/help V/version
end

function __fish_atelier_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_atelier_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_atelier_using_subcommand
    set -l cmd (__fish_atelier_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c atelier -n "__fish_atelier_needs_command" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_needs_command" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_needs_command" -s V -l version -d 'Print version'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "demo" -d 'Generate sample jobs with everything embedded: S3, webhook receiver, the real handler'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "host" -d 'Take jobs from queues and HTTP, and keep handlers alive that generate them'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "invoke" -d 'Take one event through the handler in this process and print the reply'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "submit" -d 'Hand a job to a host or a queue, follow it, bring its images'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "jobs" -d 'What a host knows of its jobs: list, show, follow, cancel'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "dead" -d 'What failed for good in the queues: list, show, send again, remove'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "models" -d 'Download models and verify checksums'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "doctor" -d 'Check what the function and the host need, one line each, and say how to repair it'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "inspect" -d 'Show what an image says of itself, and verify its content credentials'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "audit" -d 'Show how the images of a job came about, and whether they are those of its record'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "completions" -d 'Print the completion script of a shell; docs/completions/ has them'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "manual" -d 'Print the manual page; docs/atelier.1 has it'
complete -c atelier -n "__fish_atelier_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand demo" -l out -d 'Directory for the images, the contact sheet and the embedded bucket' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand demo" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand demo" -l serve -d 'Afterwards open a page to try it, on a host over the embedded S3 server and webhook receiver; print the environment to use these'
complete -c atelier -n "__fish_atelier_using_subcommand demo" -l no-host -d 'With --serve: keep the embedded servers running without a host and its page'
complete -c atelier -n "__fish_atelier_using_subcommand demo" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand host" -l handlers -d 'Handler processes [default: one per visible GPU]' -r
complete -c atelier -n "__fish_atelier_using_subcommand host" -l drain-seconds -d 'Seconds that running jobs may go on after SIGTERM before they are handed back [default: `host.drain_seconds`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand host" -l port -d 'TCP port of the HTTP server, 0 for a free one [default: `server.port`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand host" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand host" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand invoke" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand invoke" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand submit" -l to -d 'A host\'s address, or the configured queue: `sqs` or `rabbitmq` [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand submit" -l out -d 'Follow the job, and put its previews while it runs, and its images, into this directory' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand submit" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand submit" -l follow -d 'Print what happens to the job, until it has ended'
complete -c atelier -n "__fish_atelier_using_subcommand submit" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -l at -d 'A host\'s address [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -f -a "list" -d 'The jobs that the host has seen last, the newest first'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -f -a "show" -d 'All that is known of a job, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -f -a "follow" -d 'Print what happens to a job, until it has ended'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -f -a "cancel" -d 'Cancel a job that has not ended'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and not __fish_seen_subcommand_from list show follow cancel help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from list" -l at -d 'A host\'s address [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from show" -l at -d 'A host\'s address [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from follow" -l out -d 'Put its previews while it runs, and its images, into this directory' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from follow" -l at -d 'A host\'s address [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from follow" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from follow" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from cancel" -l at -d 'A host\'s address [default: the host at `server.port` of this machine]' -r
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from cancel" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from cancel" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from help" -f -a "list" -d 'The jobs that the host has seen last, the newest first'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from help" -f -a "show" -d 'All that is known of a job, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from help" -f -a "follow" -d 'Print what happens to a job, until it has ended'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from help" -f -a "cancel" -d 'Cancel a job that has not ended'
complete -c atelier -n "__fish_atelier_using_subcommand jobs; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -l from -d 'Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ\'s messages [default: each queue that is configured, and the spool where there is one]' -r -f -a "sqs\t''
rabbitmq\t''
spool\t''
bucket\t'`dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it'"
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -l dead-queue -d 'RabbitMQ\'s queue of dead letters [default: the name of the queue of jobs and `.dead`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -f -a "list" -d 'One line each: source, own id, job, when it was sent, why it failed'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -f -a "show" -d 'All that is known of a message, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -f -a "retry" -d 'Send messages again, with all their attempts'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -f -a "purge" -d 'Remove messages for good'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and not __fish_seen_subcommand_from list show retry purge help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from list" -l from -d 'Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ\'s messages [default: each queue that is configured, and the spool where there is one]' -r -f -a "sqs\t''
rabbitmq\t''
spool\t''
bucket\t'`dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it'"
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from list" -l dead-queue -d 'RabbitMQ\'s queue of dead letters [default: the name of the queue of jobs and `.dead`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from show" -l from -d 'Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ\'s messages [default: each queue that is configured, and the spool where there is one]' -r -f -a "sqs\t''
rabbitmq\t''
spool\t''
bucket\t'`dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it'"
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from show" -l dead-queue -d 'RabbitMQ\'s queue of dead letters [default: the name of the queue of jobs and `.dead`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from retry" -l from -d 'Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ\'s messages [default: each queue that is configured, and the spool where there is one]' -r -f -a "sqs\t''
rabbitmq\t''
spool\t''
bucket\t'`dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it'"
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from retry" -l dead-queue -d 'RabbitMQ\'s queue of dead letters [default: the name of the queue of jobs and `.dead`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from retry" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from retry" -l all -d 'All that are there now'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from retry" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from purge" -l from -d 'Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ\'s messages [default: each queue that is configured, and the spool where there is one]' -r -f -a "sqs\t''
rabbitmq\t''
spool\t''
bucket\t'`dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it'"
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from purge" -l dead-queue -d 'RabbitMQ\'s queue of dead letters [default: the name of the queue of jobs and `.dead`]' -r
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from purge" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from purge" -l all -d 'All that are there now'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from purge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from help" -f -a "list" -d 'One line each: source, own id, job, when it was sent, why it failed'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from help" -f -a "show" -d 'All that is known of a message, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from help" -f -a "retry" -d 'Send messages again, with all their attempts'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from help" -f -a "purge" -d 'Remove messages for good'
complete -c atelier -n "__fish_atelier_using_subcommand dead; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -f -a "pull" -d 'Bring the files that a model\'s manifest names, or that its source has; what is right already is left alone'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -f -a "pack" -d 'Write a Stable Diffusion checkpoint with all its weights in one file, converted once, so that it loads as fast as it is read'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -f -a "list" -d 'Show every manifest, what is there of its model, and where the rest comes from'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -f -a "verify" -d 'Compare the files that are there with the checksums in the manifest'
complete -c atelier -n "__fish_atelier_using_subcommand models; and not __fish_seen_subcommand_from pull pack list verify help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pull" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pull" -l offline -d 'Fetch nothing: say what is missing'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pull" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pack" -l dtype -d 'What the weights are written in: what the function computes in, f16 on a GPU and f32 on a CPU unless `engine.dtype` says otherwise' -r -f -a "f32\t''
f16\t''
bf16\t''"
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pack" -l to -d 'Directory that is written [default: the checkpoint\'s directory with the format behind its name, such as sd15-f16]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pack" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from pack" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from verify" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from help" -f -a "pull" -d 'Bring the files that a model\'s manifest names, or that its source has; what is right already is left alone'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from help" -f -a "pack" -d 'Write a Stable Diffusion checkpoint with all its weights in one file, converted once, so that it loads as fast as it is read'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from help" -f -a "list" -d 'Show every manifest, what is there of its model, and where the rest comes from'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Compare the files that are there with the checksums in the manifest'
complete -c atelier -n "__fish_atelier_using_subcommand models; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -l webhook -d 'An address that a caller would give as `callback.url`, to be checked as one' -r
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -l limit-s -d 'Seconds that a check may take; hashing has more, by the size of the files' -r
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -l json -d 'Print an array of objects instead of lines: check, state, found, fix'
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -l quick -d 'Look at the lengths of model files alone, do not hash them'
complete -c atelier -n "__fish_atelier_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand inspect" -l trust-anchors -d 'PEM of the roots that are trusted; without them no signer is, and credentials verify when nothing was changed' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand inspect" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand inspect" -l json -d 'Print one JSON object instead of lines'
complete -c atelier -n "__fish_atelier_using_subcommand inspect" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand audit" -l prefix -d 'Object key prefix of the job, where it named one [default: that of the model\'s manifest]' -r
complete -c atelier -n "__fish_atelier_using_subcommand audit" -l trust-anchors -d 'PEM of the roots that are trusted; without them no signer is, and credentials verify when nothing was changed' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand audit" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand audit" -l json -d 'Print one JSON object instead of lines'
complete -c atelier -n "__fish_atelier_using_subcommand audit" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand completions" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand completions" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand manual" -l config -d 'Configuration file [default: config.yaml in the working directory, else the built-in one]' -r -F
complete -c atelier -n "__fish_atelier_using_subcommand manual" -s h -l help -d 'Print help'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "demo" -d 'Generate sample jobs with everything embedded: S3, webhook receiver, the real handler'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "host" -d 'Take jobs from queues and HTTP, and keep handlers alive that generate them'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "invoke" -d 'Take one event through the handler in this process and print the reply'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "submit" -d 'Hand a job to a host or a queue, follow it, bring its images'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "jobs" -d 'What a host knows of its jobs: list, show, follow, cancel'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "dead" -d 'What failed for good in the queues: list, show, send again, remove'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "models" -d 'Download models and verify checksums'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "doctor" -d 'Check what the function and the host need, one line each, and say how to repair it'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "inspect" -d 'Show what an image says of itself, and verify its content credentials'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "audit" -d 'Show how the images of a job came about, and whether they are those of its record'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "completions" -d 'Print the completion script of a shell; docs/completions/ has them'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "manual" -d 'Print the manual page; docs/atelier.1 has it'
complete -c atelier -n "__fish_atelier_using_subcommand help; and not __fish_seen_subcommand_from demo host invoke submit jobs dead models doctor inspect audit completions manual help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from jobs" -f -a "list" -d 'The jobs that the host has seen last, the newest first'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from jobs" -f -a "show" -d 'All that is known of a job, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from jobs" -f -a "follow" -d 'Print what happens to a job, until it has ended'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from jobs" -f -a "cancel" -d 'Cancel a job that has not ended'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from dead" -f -a "list" -d 'One line each: source, own id, job, when it was sent, why it failed'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from dead" -f -a "show" -d 'All that is known of a message, as JSON'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from dead" -f -a "retry" -d 'Send messages again, with all their attempts'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from dead" -f -a "purge" -d 'Remove messages for good'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from models" -f -a "pull" -d 'Bring the files that a model\'s manifest names, or that its source has; what is right already is left alone'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from models" -f -a "pack" -d 'Write a Stable Diffusion checkpoint with all its weights in one file, converted once, so that it loads as fast as it is read'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from models" -f -a "list" -d 'Show every manifest, what is there of its model, and where the rest comes from'
complete -c atelier -n "__fish_atelier_using_subcommand help; and __fish_seen_subcommand_from models" -f -a "verify" -d 'Compare the files that are there with the checksums in the manifest'
