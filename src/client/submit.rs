//! `atelier submit JOB.json`: hands a job in, follows it, and downloads its images.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use super::follow::follow;
use super::{Api, job_id};
use crate::config::{Config, Environment};
use crate::host::source::Source;
use crate::host::source::rabbitmq::RabbitMq;
use crate::host::source::sqs::Sqs;
use crate::start::command::{input, line};

#[derive(clap::Args)]
pub struct Options {
    /// The job as JSON (docs/jobs.md); `-` for standard input
    job: PathBuf,
    /// A host's address, or the configured queue: `sqs` or `rabbitmq` [default: the host at `server.port` of this machine]
    #[arg(long, value_name = "URL|sqs|rabbitmq")]
    to: Option<String>,
    /// Print what happens to the job, until it has ended
    #[arg(long)]
    follow: bool,
    /// Follow the job, and put its previews while it runs, and its images, into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Hands the job in, and follows it where that is asked for.
///
/// # Errors
/// When the job is refused, fails, or its images cannot be brought.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let body = input(&options.job)?;
    let follows = options.follow || options.out.is_some();
    let queue = options.to.as_deref().filter(|to| ["sqs", "rabbitmq"].contains(to));
    if let Some(queue) = queue {
        ensure!(!follows, "--follow and --out need a host: give its address as --to URL");
        return send(queue, &body, &Config::load(config, environment)?).await;
    }
    let api = Api::new(options.to.as_deref(), config, environment)?;
    let answer = submit(&api, body).await?;
    let id = job_id(answer["job_id"].as_str().unwrap_or_default())?;
    line(&format!("{id} {}", answer["message"].as_str().or(answer["status"].as_str()).unwrap_or("accepted")))?;
    if follows {
        follow(&api, &id, options.out.as_deref()).await?;
    }
    Ok(())
}

/// The route that takes jobs of this task.
fn route(job: &Value) -> &'static str {
    match job["task"].as_str() {
        Some("tryon") => "tryon",
        Some("edit") => "edit",
        _ => "generate",
    }
}

async fn submit(api: &Api, body: Vec<u8>) -> anyhow::Result<Value> {
    let job: Value = serde_json::from_slice(&body).context("the job is not JSON")?;
    let request = api.request(Method::POST, &[route(&job)])?;
    let answer = api.answer(request.header(CONTENT_TYPE, "application/json").body(body)).await?;
    ensure!(answer["job_id"].is_string(), "the host answered something else than a job: {answer}");
    Ok(answer)
}

/// Puts the job into the queue of the configuration, as a backend would: what is wrong with it is told by its webhook.
async fn send(queue: &str, body: &[u8], config: &Config) -> anyhow::Result<()> {
    let job: Value = serde_json::from_slice(body).context("the job is not JSON")?;
    let id = job_id(job["job_id"].as_str().context("job_id is required: whoever sends a job names it")?)?;
    let source: Box<dyn Source> = match queue {
        "sqs" => Box::new(Sqs::connect(&config.sources.sqs).await?),
        _ => Box::new(RabbitMq::start(&config.sources.rabbitmq)?),
    };
    source.send(id.as_str(), body, None).await?;
    Ok(line(&format!("{id} the job is in the queue"))?)
}
