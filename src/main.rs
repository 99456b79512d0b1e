//! Which role to play: the Lambda handler where there is a Runtime API, else what the command line says.

use std::io::{Error, ErrorKind, Write as _, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use atelier::{config, demo, doctor, inspect, invoke, log, serve, start};
use clap::{CommandFactory as _, Parser, Subcommand};

/// A GPU function: a job out of an event, images in S3, a signed webhook out.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file [default: config.yaml in the working directory, else the built-in one]
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Generate sample jobs with everything embedded: S3, webhook receiver, the real handler.
    Demo(demo::Options),
    /// Take jobs from queues and HTTP, and keep handlers alive that generate them.
    Host(start::host::Options),
    /// Take one event through the handler in this process and print the reply.
    Invoke(invoke::Options),
    /// Download models and verify checksums.
    Models(start::models::Options),
    /// Check what the function and the host need, one line each, and say how to repair it.
    Doctor(doctor::Options),
    /// Show what an image says of itself, and verify its content credentials.
    Inspect(inspect::Options),
    /// Print the completion script of a shell; docs/completions/ has them.
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page; docs/atelier.1 has it.
    #[command(hide = true)]
    Manual,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = config::environment();
    let for_a_person = !matches!(arguments.role, Some(Role::Host(_)) | None);
    let default_level = match arguments.role {
        Some(Role::Doctor(_) | Role::Inspect(_)) => log::DefaultLevel::Nothing,
        Some(Role::Demo(_)) => log::DefaultLevel::Warnings,
        _ => log::DefaultLevel::Outcomes,
    };
    match Box::pin(play(arguments, default_level, &environment)).await {
        Ok(code) => return code,
        // The reader of standard output has read enough.
        Err(error) if error.downcast_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::BrokenPipe) => {
            return ExitCode::SUCCESS;
        }
        Err(error) if for_a_person => drop(writeln!(stderr(), "atelier: {error:#}")),
        Err(error) => tracing::error!(error = format!("{error:#}"), "atelier ends"),
    }
    ExitCode::FAILURE
}

async fn play(arguments: Arguments, level: log::DefaultLevel, environment: &config::Environment) -> anyhow::Result<ExitCode> {
    log::start(environment, level)?;
    let config = arguments.config.as_deref();
    match arguments.role {
        Some(Role::Demo(options)) => Box::pin(demo::run(&options, environment)).await?,
        Some(Role::Invoke(options)) => invoke::run(&options, config, environment).await?,
        Some(Role::Models(options)) => return start::models::run(options, config, environment).await,
        Some(Role::Doctor(options)) => return doctor::run(&options, config, environment).await,
        Some(Role::Inspect(options)) => return inspect::run(&options, config, environment).await,
        Some(Role::Host(options)) => start::host::run(options, config, environment).await?,
        Some(Role::Completions { shell }) => start::command::complete(shell, &mut Arguments::command())?,
        Some(Role::Manual) => clap_mangen::Man::new(Arguments::command()).render(&mut stdout())?,
        None => return Box::pin(serve::run(config, environment)).await,
    }
    Ok(ExitCode::SUCCESS)
}
