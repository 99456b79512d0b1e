//! Which role to play: the Lambda handler where there is a Runtime API, else what the command line says.

use std::io::{Error, ErrorKind, Write as _, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use atelier::role::Role;
use atelier::telemetry::Telemetry;
use atelier::{client, config, demo, doctor, inspect, invoke, log, serve, start};
use clap::{CommandFactory as _, Parser};

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

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = config::environment();
    let for_a_person = !matches!(arguments.role, Some(Role::Host(_)) | None);
    let default_level = arguments.role.as_ref().map_or(log::DefaultLevel::Outcomes, Role::default_level);
    let exported = if exports_traces(arguments.role.as_ref()) { Telemetry::new(&environment) } else { Ok(None) };
    let (telemetry, exported) = exported.map_or_else(|error| (None, Err(error)), |telemetry| (telemetry, Ok(())));
    let played = match log::start(&environment, default_level, telemetry.as_ref()).and(exported) {
        Ok(()) => Box::pin(play(arguments, &environment, telemetry.clone())).await,
        Err(error) => Err(error.into()),
    };
    if let Some(telemetry) = telemetry {
        telemetry.end().await;
    }
    match played {
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

/// Those that take jobs; the others ask.
fn exports_traces(role: Option<&Role>) -> bool {
    matches!(role, None | Some(Role::Host(_) | Role::Invoke(_)))
}

async fn play(
    arguments: Arguments,
    environment: &config::Environment,
    telemetry: Option<Telemetry>,
) -> anyhow::Result<ExitCode> {
    let config = arguments.config.as_deref();
    match arguments.role {
        Some(Role::Demo(options)) => Box::pin(demo::run(&options, environment)).await?,
        Some(Role::Invoke(options)) => Box::pin(invoke::run(&options, config, environment)).await?,
        Some(Role::Submit(options)) => Box::pin(client::submit::run(&options, config, environment)).await?,
        Some(Role::Jobs(options)) => client::jobs::run(&options, config, environment).await?,
        Some(Role::Dead(options)) => client::dead::run(&options, config, environment).await?,
        Some(Role::Models(options)) => return start::models::run(options, config, environment).await,
        Some(Role::Doctor(options)) => return doctor::run(&options, config, environment).await,
        Some(Role::Inspect(options)) => return inspect::run(&options, config, environment).await,
        Some(Role::Audit(options)) => return inspect::audit::run(&options, config, environment).await,
        Some(Role::Host(options)) => start::host::run(options, config, environment).await?,
        Some(Role::Completions { shell }) => start::command::complete(shell, &mut Arguments::command())?,
        Some(Role::Manual) => clap_mangen::Man::new(Arguments::command()).render(&mut stdout())?,
        None => return Box::pin(serve::run(config, environment, telemetry)).await,
    }
    Ok(ExitCode::SUCCESS)
}
