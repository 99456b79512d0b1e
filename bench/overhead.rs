//! Our side of `bench/overhead.py`: the handler with an engine that generates nothing, next to the servers that both sides use.

mod null;

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use atelier::config::Environment;
use atelier::demo::local::{self, Local};
use atelier::workflow::control::{Control, Shutdown};
use serde_json::json;
use serde_json::value::to_raw_value;

/// Prints the servers' addresses, then for every job id on a line the seconds it took.
#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Local { config, environment, s3, webhooks, mut notifications } =
        local::start(directory.path(), None, &Environment::new()).await?;
    tokio::spawn(async move { while notifications.recv().await.is_some() {} });
    let handler = null::handler(&config, &environment).await?;
    let mut out = stdout();
    writeln!(out, "{s3} {webhooks}")?;
    let (_switch, shutdown) = Shutdown::channel();
    let control = Control::unlimited(shutdown);
    for line in stdin().lock().lines() {
        let event: serde_json::Value = serde_json::from_str(include_str!("../events/sqs-plain.json"))?;
        let body = json!({ "job_id": line?, "prompt": "nothing", "width": 512, "height": 512 }).to_string();
        let mut event = event;
        event["Records"].get_mut(0).context("the sample has a record")?["body"] = body.into();
        // As bytes, which is how a function gets it.
        let event = to_raw_value(&event)?;
        let started = Instant::now();
        let reply = handler.handle(&event, &control).await?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(reply == json!({ "batchItemFailures": [] }), "the job failed: {reply}");
        writeln!(out, "{seconds}")?;
    }
    Ok(())
}
