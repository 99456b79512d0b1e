//! `atelier submit JOB.json`: hands a job in, follows it, and downloads its images.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use super::events::JobEvent;
use super::{Api, job_id};
use crate::config::{Config, Environment};
use crate::host::source::Source;
use crate::host::source::rabbitmq::RabbitMq;
use crate::host::source::sqs::Sqs;
use crate::job::JobId;
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
    /// Follow the job, and put its images into this directory
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
        let ended = api.follow(&id, |event| report_event(&id, event)).await?;
        if let Some(directory) = &options.out {
            download(&api, &id, &ended, directory).await?;
        }
        ensure!(ended["state"] == "complete", "{id} has not been completed");
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

/// A line for each event.
pub(super) fn report_event(id: &JobId, event: &JobEvent) -> anyhow::Result<()> {
    let JobEvent { name, document, .. } = event;
    Ok(line(&match name.as_str() {
        "step" => format!("{id} step {} of {}", document["step"], document["steps"]),
        "started" => format!("{id} started, attempt {}", document["attempt"]),
        "accepted" if document["position"].is_u64() => format!("{id} accepted, {} before it", document["position"]),
        _ => match document["error"]["message"].as_str() {
            Some(message) => format!("{id} {name}: {message}"),
            None => format!("{id} {name}"),
        },
    })?)
}

/// Writes the images of a complete job.
async fn download(api: &Api, id: &JobId, job: &Value, directory: &Path) -> anyhow::Result<()> {
    let images = job["result"]["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    for (index, image) in images.iter().enumerate() {
        let url = image["url"].as_str().context("the result has an image without an address")?;
        let response = api.client.get(url).send().await.with_context(|| format!("image {index} of {id} cannot be fetched"))?;
        if !response.status().is_success() {
            bail!("image {index} of {id} cannot be fetched: the store answered {}", response.status());
        }
        let kind = image["content_type"].as_str().and_then(|kind| kind.strip_prefix("image/")).unwrap_or("png");
        let file = directory.join(format!("{id}-{index}.{kind}"));
        let bytes = response.bytes().await.with_context(|| format!("image {index} of {id} broke off"))?;
        std::fs::write(&file, bytes).with_context(|| format!("{} cannot be written", file.display()))?;
        line(&format!("{id} {}", file.display()))?;
    }
    Ok(())
}
