//! What both sides of `bench/host.py` use: under a Runtime API the function, otherwise the servers it talks to.

mod null;

use std::io::{Read as _, Write as _, stdin, stdout};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use atelier::config::{self, Config, Environment};
use atelier::demo::local::{self, Local};
use atelier::handler::lambda::{self, Host, Limits};
use atelier::handler::line;
use atelier::protocol::control;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let environment = config::environment();
    if config::runtime_api(&environment)?.is_some() { serve_function(&environment).await } else { serve_jobs().await }
}

/// The function until SIGTERM, under any host.
async fn serve_function(environment: &Environment) -> Result<()> {
    let config = Config::load(Some(Path::new("src/demo/config.yaml")), environment)?;
    let host =
        if control::decode_environment(environment)? { Some(line::listen(std::io::BufReader::new(stdin()))?) } else { None };
    let limits = Limits { deadline_margin: Duration::from_secs(5), shutdown_grace: Duration::from_secs(5) };
    let handler = null::handler(&config, environment).await?;
    let host = host.map(|commands| Host { commands, previews: None });
    lambda::serve(handler, limits, host, None).await.map(drop).map_err(anyhow::Error::from_boxed)
}

/// Prints the environment to reach the servers, then the id of every job that is reported as complete; ends with standard input.
async fn serve_jobs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Local { environment, mut notifications, .. } = local::start(directory.path(), None, &Environment::new()).await?;
    writeln!(stdout(), "{}", json!(environment))?;
    let mut over = tokio::task::spawn_blocking(|| stdin().read_to_end(&mut Vec::new()));
    loop {
        tokio::select! {
            _ = &mut over => return Ok(()),
            Some(notification) = notifications.recv() => {
                if let (true, Some(job_id)) = (notification.path.ends_with("/complete"), notification.body["job_id"].as_str()) {
                    writeln!(stdout(), "{job_id}")?;
                }
            }
        }
    }
}
