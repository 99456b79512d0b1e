//! Which role to play: the Lambda handler where there is a Runtime API, else what the command line says.

use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use atelier::{config, demo, invoke, log, serve, start};
use clap::{Parser, Subcommand};

/// A GPU function: a job out of an event, pictures in S3, a signed webhook out.
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
    /// Paint three sample jobs with everything embedded: S3, webhook receiver, the real handler.
    Demo(demo::Options),
    /// Take jobs from queues and HTTP, and keep handlers alive that paint them.
    Host(start::host::Options),
    /// Take one event through the handler in this process and print the reply.
    Invoke(invoke::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = config::environment();
    let for_a_person = matches!(arguments.role, Some(Role::Demo(_) | Role::Invoke(_)));
    log::start(&environment, matches!(arguments.role, Some(Role::Demo(_))));
    match play(arguments, &environment).await {
        Ok(code) => return code,
        Err(error) if for_a_person => drop(writeln!(stderr(), "atelier: {error:#}")),
        Err(error) => tracing::error!(error = format!("{error:#}"), "atelier ends"),
    }
    ExitCode::FAILURE
}

async fn play(arguments: Arguments, environment: &config::Environment) -> anyhow::Result<ExitCode> {
    let config = arguments.config.as_deref();
    match arguments.role {
        Some(Role::Demo(options)) => demo::run(&options).await?,
        Some(Role::Invoke(options)) => invoke::run(&options, config, environment).await?,
        Some(Role::Host(options)) => start::host::run(options, config, environment).await?,
        None => return serve::run(config, environment).await,
    }
    Ok(ExitCode::SUCCESS)
}
