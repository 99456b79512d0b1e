//! A job whose caller was told that it failed, and whose host ended before the message was settled: one end, and a free id afterwards.

use axum::http::StatusCode;
use serde_json::json;

use super::{HostProcess, eventually, job};

/// Where failures are noted until their messages are settled.
fn notes(host: &HostProcess, id: &str) -> Vec<String> {
    let files = std::fs::read_dir(host.bucket.path(&format!("generations/{id}"))).into_iter().flatten();
    let names = files.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("failed-")).collect()
}

/// How many of them say that their messages are settled.
fn settled(host: &HostProcess, id: &str) -> usize {
    let notes = notes(host, id).into_iter().map(|name| host.bucket.path(&format!("generations/{id}/{name}")));
    let texts = notes.filter_map(|note| std::fs::read_to_string(note).ok());
    texts.filter(|note| note.contains(r#""stage": "settled""#)).count()
}

#[tokio::test]
async fn a_host_that_dies_between_the_failed_and_its_ack_reports_the_same_again_and_starts_nothing() {
    let mut host = HostProcess::start(&[("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.bucket.hold(Some("/0.png"));
    host.post("/generate", &job("poison")).await;
    host.bucket.holding().await;
    // The receiver has it and says nothing, as one does whose answer is lost.
    host.backend.answer.send_replace(None);
    super::signal(rustix::process::Signal::KILL, host.handlers()[0]);
    let first = host.backend.terminal().await;
    assert_eq!((first.path.as_str(), &first.body["error"]["code"]), ("/api/webhooks/inference/failed", &json!("handler_died")));
    assert_eq!(notes(&host, "poison").len(), 1);
    host.kill();

    // From here on it would succeed.
    host.bucket.hold(None);
    host.backend.answer.send_replace(Some(StatusCode::OK));
    host.restart();
    eventually("the job is dead-lettered", || host.spooled("dead").len() == 2)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    let notified: Vec<_> =
        host.backend.arrived().into_iter().filter(|notified| !notified.path.ends_with("/progress")).collect();
    assert_eq!(notified.len(), 1, "{notified:?}");
    assert_eq!((&notified[0].path, &notified[0].webhook_id, &notified[0].body), (&first.path, &first.webhook_id, &first.body));
    assert!(host.logged("job done").is_empty() && host.bucket.puts("/result.json") == 0);
    eventually("its message is settled, and the note says so", || settled(&host, "poison") == 1).await.unwrap();

    // A failed job can be sent again, also with the same body.
    host.ready().await;
    host.post("/generate", &job("poison")).await;
    assert_eq!(host.backend.terminal().await.path, "/api/webhooks/inference/complete");
}

#[tokio::test]
async fn a_failed_that_is_not_taken_is_reported_again_without_another_run() {
    let changes = [("ATELIER__RUNTIME__MAX_ATTEMPTS", "1"), ("ATELIER__NOTIFY__MAX_ATTEMPTS", "1")];
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    let mut missing = job("missing");
    missing["lora"] = json!([{ "url": format!("s3://{}/nowhere.safetensors", atelier::demo::local::BUCKET) }]);
    host.post("/generate", &missing).await;
    host.wait_for("a notification waits to be sent again", 3).await;
    host.backend.answer.send_replace(Some(StatusCode::OK));
    eventually("the job is settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    let notified: Vec<_> =
        host.backend.arrived().into_iter().filter(|notified| !notified.path.ends_with("/progress")).collect();
    assert!(notified.len() >= 4 && notified.iter().all(|notified| notified.path.ends_with("/failed")), "{notified:?}");
    assert!(
        notified.iter().all(|notification| notification.body == notified[0].body),
        "the same bytes each time: {notified:?}"
    );
    assert_eq!(host.logged("job failed").len(), 1, "it ran once");
    eventually("the note says that it is settled", || settled(&host, "missing") == 1).await.unwrap();
}
