//! The safety gate: what is not allowed is never generated, or never seen; who cannot be asked lets nothing through.

mod audit;
mod checker;
mod moderator;
mod policy;
mod prompts;

use atelier::protocol::reply::{self, JobReport};
use serde_json::{Value, json};

use crate::bucket::is_json;
use crate::events::sample;
use crate::stage::Stage;

pub(crate) fn body(id: &str, prompt: &str) -> Value {
    json!({ "job_id": id, "prompt": prompt, "width": 64, "height": 64, "steps": 8 })
}

pub(crate) fn event(body: &Value) -> Value {
    let mut event = sample("sqs-plain.json");
    event["Records"][0]["body"] = json!(body.to_string());
    event["Records"][0]["messageId"] = body["job_id"].clone();
    event
}

/// What became of one job, as a host hears it.
pub(crate) async fn run(stage: &mut Stage, body: &Value) -> JobReport {
    let reply = stage.handle_for_host(event(body)).await;
    reply::decode(&reply).expect("our own reply").pop().expect("one job")
}

/// The object `name` of a job, as JSON.
pub(crate) fn object(stage: &Stage, id: &str, name: &str) -> Option<Value> {
    let file = std::fs::read(stage.bucket.path(&format!("generations/{id}/{name}"))).ok()?;
    Some(serde_json::from_slice(&file).expect("JSON"))
}

/// Keys of everything but JSON that was ever put.
pub(crate) fn images_put(stage: &Stage) -> Vec<String> {
    stage.bucket.keys_put().into_iter().filter(|key| !is_json(key)).collect()
}
