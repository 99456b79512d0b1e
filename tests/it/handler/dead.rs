//! `atelier dead --from bucket`: what a function on Lambda has refused of Amazon MQ's messages, and no queue keeps.

use atelier::demo::{local, s3};
use atelier::handler::KeepRefused;
use atelier::host::source::Source as _;
use atelier::host::source::rabbitmq::RabbitMq;
use serde_json::{Value, json};

use super::refused::{dead, rabbitmq, wrong};
use crate::host::dead::{dead as command, done};
use crate::host::rabbitmq::next;
use crate::servers::rabbitmq::shared_or_skip;
use crate::stage::Stage;

/// What names the bucket to the command.
fn environment(stage: &Stage) -> Vec<(&'static str, String)> {
    let cache = stage.bucket.path("cache").display().to_string();
    vec![
        ("ATELIER__STORE__BUCKET", local::BUCKET.to_owned()),
        ("ATELIER__STORE__REGION", "us-east-1".to_owned()),
        ("ATELIER__STORE__ENDPOINT_URL", format!("http://{}", stage.bucket.address)),
        ("ATELIER__STORE__FORCE_PATH_STYLE", "true".to_owned()),
        ("ATELIER__STORE__CACHE__DIRECTORY", cache),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_ACCESS_KEY.to_owned()),
    ]
}

fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Two refused messages: one that is no job, and one of job `told`.
async fn refusing() -> Stage {
    let mut stage = Stage::set().await;
    stage.handler.keep_refused = KeepRefused { sqs: false, rabbitmq: true };
    assert_eq!(stage.handle(rabbitmq(&["no job".into(), wrong("told").to_string()])).await, Ok(Value::Null));
    assert_eq!(dead(&stage).len(), 2);
    stage
}

#[tokio::test]
async fn what_lambda_keeps_in_the_bucket_is_listed_shown_and_removed() {
    let stage = refusing().await;
    let environment = environment(&stage);
    let environment = borrowed(&environment);
    let lines = done(&environment, &["list", "--from", "bucket"]).await;
    let listed: Vec<Vec<&str>> = lines.lines().map(|line| line.splitn(5, ' ').collect()).collect();
    let of = |job: &str| listed.iter().find(|columns| columns[2] == job).unwrap_or_else(|| panic!("{lines}"));
    assert_eq!(listed.len(), 2, "{lines}");
    assert!(listed.iter().all(|columns| columns[0] == "bucket" && columns[3].starts_with("20")), "{lines}");
    assert!(of("told")[4].starts_with("invalid_request: steps: "), "{lines}");
    let shown = done(&environment, &["show", of("-")[1], "--from", "bucket"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["source"], &shown["body"]), (&json!("bucket"), &json!("no job")));
    // Without a broker it goes nowhere, and stays.
    let (code, _, errors) = command(&environment, &["retry", "told", "--from", "bucket"]).await;
    assert!(
        code == Some(1) && errors.contains("goes back to RabbitMQ's queue of jobs") && errors.contains("RABBITMQ_HOST"),
        "{errors}"
    );
    assert_eq!(dead(&stage).len(), 2);
    assert!(done(&environment, &["purge", "told", "--from", "bucket"]).await.ends_with(" told is removed\n"));
    assert_eq!(dead(&stage).iter().map(|kept| kept["body"].clone()).collect::<Vec<_>>(), [json!("no job")]);
    // What else lies there is not looked at.
    std::fs::write(stage.bucket.path("dead").join("other.json"), "[]").unwrap();
    assert_eq!(done(&environment, &["list", "--from", "bucket"]).await.lines().count(), 1);
    // One that cannot be read is named, and holds nothing up.
    let broken = format!("{}.json", "0".repeat(64));
    std::fs::write(stage.bucket.path("dead").join(&broken), "[]").unwrap();
    let (code, lines, errors) = command(&environment, &["list", "--from", "bucket"]).await;
    assert_eq!((code, lines.lines().count()), (Some(1), 1), "{lines}");
    assert!(errors.contains(&format!("dead/{broken} is no message that was kept here")), "{errors}");
    // It is asked for by name: a host's own queues are elsewhere.
    let (_, _, errors) = command(&environment, &["list"]).await;
    assert!(errors.contains("no source is configured"), "{errors}");
}

#[tokio::test]
async fn what_lambda_keeps_in_the_bucket_is_sent_again_to_the_queue_it_came_from() {
    let Some(node) = shared_or_skip("atelier dead, the bucket of a function with Amazon MQ").await else { return };
    let stage = refusing().await;
    let mut environment = environment(&stage);
    environment.extend([
        ("RABBITMQ_HOST", "127.0.0.1".to_owned()),
        ("RABBITMQ_PORT", node.port.to_string()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "refused-on-lambda".to_owned()),
    ]);
    let queue = RabbitMq::start(&node.settings("refused-on-lambda")).unwrap();
    queue.depth().await.unwrap();
    let lines = done(&borrowed(&environment), &["retry", "told", "--from", "bucket"]).await;
    assert!(lines.ends_with(" told is sent again\n"), "{lines}");
    let again = next(&queue).await;
    assert_eq!((again.body, again.attempt), (wrong("told").to_string().into_bytes(), 1));
    assert_eq!(dead(&stage).len(), 1, "it is in one place");
}
