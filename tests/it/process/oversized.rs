//! What would not fit a reply of Lambda, which ends a handler that posts one: it is refused early, and the same process goes on.

use std::time::Duration;

use serde_json::{Value, json};

use super::World;
use super::runtime_api::{Posted, RuntimeApi};
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::events::sample;

const LIMIT: Duration = Duration::from_mins(10);

#[tokio::test]
async fn metadata_of_forty_megabytes_in_each_kind_of_event_does_not_end_the_handler() {
    let mut api = RuntimeApi::start().await;
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let _handler = world.start(&[], &directory.path().join("log"));
    let job = |id: &str, metadata: Value| json!({ "job_id": id, "prompt": "a mug", "steps": 1, "callback": { "metadata": metadata } });
    // Escaped, each character takes two bytes more in a reply.
    let huge = job("huge", json!({ "text": "\"".repeat(20 << 20) }));

    let mut sqs = sample("sqs-plain.json");
    for attempt in 1..=3 {
        sqs["Records"][0]["body"] = json!(huge.to_string());
        sqs["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!(attempt.to_string());
        api.invoke(sqs.clone(), LIMIT);
        assert!(matches!(api.posted().await, Posted::Response(_)), "attempt {attempt}");
    }
    api.invoke(huge.clone(), LIMIT);
    let Posted::Response(answer) = api.posted().await else { panic!("no answer") };
    assert_eq!(answer["error"]["code"], "invalid_request", "{answer}");
    let mut http = sample("http-apigw-v2.json");
    http["body"] = json!(huge.to_string());
    http["isBase64Encoded"] = json!(false);
    api.invoke(http, LIMIT);
    let Posted::Response(answer) = api.posted().await else { panic!("no answer") };
    assert!(answer["statusCode"].as_u64().is_some_and(|status| (400..500).contains(&status)), "{answer}");
    api.invoke_for_host(sqs);
    let Posted::Response(answer) = api.posted().await else { panic!("no answer") };
    assert_eq!(answer["jobs"][0]["outcome"], "failed", "{answer}");

    api.invoke(job("small", json!({ "n": 1 })), LIMIT);
    let Posted::Response(answer) = api.posted().await else { panic!("no answer") };
    assert_eq!(answer["status"], "complete", "by the same process: {answer}");
    let notified = backend.arrived().into_iter().filter(|notified| notified.path.ends_with("/complete"));
    assert_eq!(notified.map(|notified| notified.body["job_id"].clone()).collect::<Vec<_>>(), ["small"]);
}
