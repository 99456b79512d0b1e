//! Which role to play: the Lambda handler where there is a Runtime API, else what the command line says.

use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use atelier::config::{self, Config};
use atelier::handler::lambda::{self, Limits};
use atelier::{demo, invoke, log, start};
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
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) if for_a_person => drop(writeln!(stderr(), "atelier: {error:#}")),
        Err(error) => tracing::error!(error = format!("{error:#}"), "atelier ends"),
    }
    ExitCode::FAILURE
}

async fn play(arguments: Arguments, environment: &config::Environment) -> anyhow::Result<()> {
    let path = arguments.config.as_deref();
    match arguments.role {
        Some(Role::Demo(options)) => demo::run(&options).await,
        Some(Role::Invoke(options)) => invoke::run(&options, path, environment).await,
        Some(Role::Host(options)) => start::host::run(options, path, environment).await,
        None => serve(path, environment).await,
    }
}

async fn serve(path: Option<&Path>, environment: &config::Environment) -> anyhow::Result<()> {
    let runtime_api = config::runtime_api(environment)?
        .context("there is no Runtime API here (AWS_LAMBDA_RUNTIME_API is not set); try `atelier demo` or `atelier --help`")?;
    let started = async {
        let config = Config::load(path, environment)?;
        let handler = start::handler(&config, environment, Arc::new(|_, _| ())).await?;
        Ok::<_, start::StartError>((config, handler))
    };
    let (config, handler) = match started.await {
        Ok(started) => started,
        Err(error) => {
            if let Err(unheard) = lambda::report_init_error(&runtime_api, error.error_type(), &error.to_string()).await {
                tracing::warn!(error = %unheard, "the Runtime API could not be told why the start failed");
            }
            return Err(error.into());
        }
    };
    let limits = Limits {
        deadline_margin: Duration::from_millis(config.runtime.deadline_margin_ms),
        shutdown_grace: Duration::from_millis(config.runtime.shutdown_grace_ms),
    };
    lambda::serve(handler, limits).await.map_err(anyhow::Error::from_boxed)
}
