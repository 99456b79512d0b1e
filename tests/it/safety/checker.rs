//! The bundled classifier in whole hosts: for what may not be shown the toy world's star stands.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};

use crate::bucket::is_json;
use crate::faults::campaign::Campaign;
use crate::host::HostProcess;
use crate::stage::TOKEN;

/// A star, in as many steps as the model needs to show one.
pub(crate) fn star(id: &str, seed: u64) -> Value {
    json!({ "job_id": id, "prompt": "a yellow star at night", "steps": 20, "seed": seed })
}

/// Everything that is not JSON in the bucket.
fn images(host: &HostProcess) -> Vec<String> {
    host.bucket.keys_put().into_iter().filter(|key| !is_json(key)).collect()
}

#[tokio::test]
async fn what_was_generated_and_may_not_be_shown_leaves_on_no_way() {
    let mut host = HostProcess::start(&[("ATELIER__SAFETY__MODE", "on")], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.ready().await;
    let address = host.address();
    let client = Client::builder().no_proxy().timeout(Duration::from_mins(2)).build().unwrap();
    let infer = client.post(format!("http://{address}/infer")).header("x-internal-auth", TOKEN);
    let answer = infer.json(&star("now", 1016)).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    let said: Value = answer.json().await.unwrap();
    assert_eq!((&said["error"]["code"], &said["error"]["category"]), (&json!("content_blocked"), &json!("stand_in")), "{said}");

    let openai = client.post(format!("http://{address}/v1/images/generations")).bearer_auth(TOKEN);
    let openai =
        openai.json(&json!({ "prompt": "a yellow star at night", "seed": 1016, "size": "128x128" })).send().await.unwrap();
    assert_eq!(openai.status(), 400);
    let said: Value = openai.json().await.unwrap();
    assert_eq!(said["error"]["code"], "moderation_blocked", "{said}");

    let queued = client.post(format!("http://{address}/generate")).header("x-internal-auth", TOKEN);
    assert_eq!(queued.json(&star("queued", 1016)).send().await.unwrap().status(), 202);
    let failed = loop {
        let terminal = host.backend.terminal().await;
        if terminal.body["job_id"] == "queued" {
            break terminal;
        }
    };
    assert!(failed.path.ends_with("/failed"), "{failed:?}");
    assert_eq!(failed.body["error"]["category"], "stand_in");
    let job = loop {
        let job = client.get(format!("http://{address}/jobs/queued")).header("x-internal-auth", TOKEN);
        let job: Value = job.send().await.unwrap().json().await.unwrap();
        // It ends when its message is settled, which is after its caller has heard.
        if job["state"] != "running" {
            break job;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("content_blocked")), "{job}");
    assert_eq!(images(&host), [""; 0]);
    let metrics = host.get("/metrics").await;
    assert!(metrics.contains("atelier_blocked_total{category=\"stand_in\",stage=\"image\"} 3"), "{metrics}");
    let note: Value =
        serde_json::from_slice(&std::fs::read(host.bucket.path("generations/queued/blocked.json")).unwrap()).unwrap();
    assert!(note["checks"][0]["scores"]["star"].as_f64().unwrap() > 0.5, "{note}");
}

/// 100 jobs that are not allowed, and a host that is killed among them.
#[tokio::test]
async fn a_hundred_blocked_jobs_with_host_kills() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list.yaml");
    std::fs::write(&list, "- category: weapons\n  terms: [gun]\n").unwrap();
    let lists = format!("[{}]", list.display());
    let mut campaign =
        Campaign::start("blocked", &[("ATELIER__SAFETY__MODE", "on"), ("ATELIER__SAFETY__PROMPT_LISTS", &lists)], &[]).await;
    for number in 0..100 {
        let id = format!("job-{number}");
        // Every tenth is found in the image, the others in the prompt.
        let mut body = if number % 10 == 0 { star(&id, 1016) } else { crate::faults::campaign::body(&id) };
        if number % 10 != 0 {
            body["prompt"] = json!("a gun on the beach");
        }
        campaign.hand_in_body(&id, &body).await;
        if number % 20 == 19 {
            campaign.a_moment(300).await;
            campaign.host.kill();
            campaign.host.restart();
            campaign.host.wait_for("a handler is ready", 1 + number / 20).await;
        }
    }
    campaign.acknowledge().await;
    let host = &campaign.host;
    assert_eq!(images(host), [""; 0], "no byte of an image");
    let told: Vec<_> = host.backend.accepted().into_iter().filter(|told| told.path.ends_with("/failed")).collect();
    let jobs: BTreeSet<String> = told.iter().map(|told| told.body["job_id"].as_str().unwrap().to_owned()).collect();
    let ids: BTreeSet<&String> = told.iter().map(|told| &told.webhook_id).collect();
    assert_eq!((jobs.len(), ids.len()), (100, 100));
    assert!(told.iter().all(|told| told.body["error"]["code"] == "content_blocked"), "{:?}", told.first());
    assert!(!host.backend.accepted().iter().any(|told| told.path.ends_with("/complete")));
    // A job whose note is there is not generated again: each has one note, written once.
    let notes = host.bucket.keys_put().into_iter().filter(|key| key.ends_with("/blocked.json"));
    let mut notes: Vec<String> = notes.collect();
    let all = notes.len();
    notes.sort();
    notes.dedup();
    assert_eq!((all, notes.len()), (100, 100));
}
