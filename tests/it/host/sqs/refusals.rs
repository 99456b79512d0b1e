//! What a wrong setting, a missing permission and a server in trouble are reported as.

use std::net::TcpListener;

use atelier::host::source::ConnectError;

use super::*;
use crate::servers::http::{Answer, HttpServer};

async fn refusal(settings: &Settings) -> SourceError {
    match Sqs::connect(settings).await.err().expect("must fail") {
        ConnectError::Source(error) => error,
        ConnectError::Setting(error) => panic!("not the setting's fault: {error}"),
    }
}

fn answer(status: u16, code: &str) -> Answer {
    let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "so it is" }).to_string();
    Answer::with(status, &[("content-type", "application/x-amz-json-1.0")], &body)
}

#[tokio::test]
async fn a_wrong_queue_is_found_at_start() {
    let Some(bench) = Bench::start("SQS queues that do not exist").await else { return };
    let url = bench.queue("jobs", &[]).await.replace("jobs", "jods");
    let error = refusal(&settings(&url)).await;
    assert!(matches!(error, SourceError::Refused { action: "sqs:GetQueueAttributes", .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("{url}: sqs:GetQueueAttributes: there is no such queue (")), "{text}");
    assert!(text.contains("check sources.sqs.queue_url"), "{text}");
}

#[tokio::test]
async fn a_missing_permission_is_named_and_not_tried_again() {
    let server = HttpServer::start(&[answer(403, "AccessDeniedException")]).await;
    let error = refusal(&settings(server.url("/123456789012/jobs").as_str())).await;
    assert!(matches!(error, SourceError::Refused { .. }));
    let text = error.to_string();
    assert!(text.contains("access was denied (AccessDeniedException, so it is, status 403)"), "{text}");
    assert!(text.contains("allow sqs:GetQueueAttributes on this queue"), "{text}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn throttling_and_server_errors_are_passing_and_tried_three_times() {
    for (status, code) in [(403, "RequestThrottled"), (500, "InternalError")] {
        let server = HttpServer::start(&[answer(status, code)]).await;
        let error = refusal(&settings(server.url("/123456789012/jobs").as_str())).await;
        assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
        assert_eq!(server.requests().len(), 3, "{code}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let error = refusal(&settings(&format!("http://{port}/123456789012/jobs"))).await;
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("could not be reached"), "{error}");
}

#[tokio::test]
async fn a_receive_that_fails_says_so_and_the_next_one_polls_again() {
    let Some(bench) = Bench::start("SQS polls that fail").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    bench.client.delete_queue().queue_url(&url).send().await.expect("deleted");
    let error = source.receive(1).await.expect_err("the queue is gone");
    assert!(matches!(error, SourceError::Refused { action: "sqs:ReceiveMessage", .. }), "{error:?}");
    bench.queue("jobs", &[]).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    assert_eq!(receive_one(&source).await.body, b"{}");
}

#[tokio::test]
async fn wrong_settings_are_named_before_anything_is_asked() {
    let good = settings("http://127.0.0.1:9/123456789012/jobs");
    let wrong = [
        (Settings { queue_url: None, ..good.clone() }, "sources.sqs.queue_url"),
        (Settings { queue_url: Some("image_generation".into()), ..good.clone() }, "sources.sqs.queue_url"),
        (Settings { wait_seconds: 21, ..good.clone() }, "sources.sqs.wait_seconds"),
        (Settings { wait_seconds: 0, ..good.clone() }, "sources.sqs.wait_seconds"),
        (Settings { visibility_seconds: 1, ..good.clone() }, "sources.sqs.visibility_seconds"),
        (Settings { visibility_seconds: 43_201, ..good.clone() }, "sources.sqs.visibility_seconds"),
        (Settings { endpoint_url: Some("127.0.0.1:9".into()), ..good.clone() }, "sources.sqs.endpoint_url"),
        (Settings { secret_access_key: None, ..good.clone() }, "sources.sqs.secret_access_key"),
        (Settings { access_key_id: None, ..good.clone() }, "sources.sqs.access_key_id"),
    ];
    for (settings, setting) in wrong {
        match Sqs::connect(&settings).await.err() {
            Some(ConnectError::Setting(error)) => assert_eq!(error.setting, setting, "{error}"),
            other => panic!("{setting}: {other:?}"),
        }
    }
}

fn message() -> Message {
    Message {
        id: "m-1".into(),
        identity: "m-1".into(),
        receipt: "r-1".into(),
        attempt: 1,
        deferral: None,
        group: None,
        body: b"{}".to_vec(),
        trace: None,
        sent: None,
        received: Instant::now(),
        ended: None,
        record: json!({}),
    }
}

/// A status of 200 is a proxy's word too: only SQS's own names the message and what was in it.
#[tokio::test]
async fn what_sqs_did_not_confirm_is_neither_sent_nor_deleted() {
    const JSON: &str = "application/x-amz-json-1.0";
    let attributes = json!({ "Attributes": { "QueueArn": "arn:aws:sqs:us-east-1:123456789012:jobs" } }).to_string();
    let found = Answer::with(200, &[("content-type", JSON)], &attributes);
    let server = HttpServer::start(&[found.clone(), found]).await;
    let source = Sqs::connect(&settings(server.url("/123456789012/jobs").as_str())).await.expect("the queue is there");
    let other = json!({ "MessageId": "m-1", "MD5OfMessageBody": "0" }).to_string();
    let page = "<html>please log in</html>";
    for (kind, body) in [(JSON, ""), (JSON, "{}"), (JSON, &other), ("text/html", page), (JSON, page)] {
        server.script(&[Answer::with(200, &[("content-type", kind)], body)]);
        let error = source.send("job-1", b"{}", None).await.expect_err("nothing is confirmed");
        assert!(matches!(error, SourceError::Unavailable { action: "sqs:SendMessage", .. }), "{body:?}: {error:?}");
    }
    let error = source.ack(&message()).await.expect_err("a page deletes nothing");
    assert!(matches!(error, SourceError::Unavailable { action: "sqs:DeleteMessage", .. }), "{error:?}");
    assert!(error.to_string().contains("is there a proxy in between?"), "{error}");
    let confirmed = json!({ "MessageId": "m-1", "MD5OfMessageBody": "99914b932bd37a50b983c5e7c90ae93b" }).to_string();
    server.script(&[Answer::with(200, &[("content-type", JSON)], &confirmed)]);
    source.send("job-1", b"{}", None).await.expect("it is confirmed");
}

/// Its deletion is tried until it is allowed; its copy is made once.
#[tokio::test]
async fn a_dead_letter_is_copied_once_however_often_its_deletion_is_denied() {
    let policy = json!({ "deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": 9 }).to_string();
    // What each operation reads of it.
    let all = json!({
        "Attributes": { "QueueArn": "arn:aws:sqs:us-east-1:123456789012:jobs", "RedrivePolicy": policy },
        "QueueUrl": "http://127.0.0.1/123456789012/dead",
        "MessageId": "m-2",
        "MD5OfMessageBody": "99914b932bd37a50b983c5e7c90ae93b",
    });
    let fine = Answer::with(200, &[("content-type", "application/x-amz-json-1.0")], &all.to_string());
    let server = HttpServer::start(std::slice::from_ref(&fine)).await;
    let source = Sqs::connect(&settings(server.url("/123456789012/jobs").as_str())).await.expect("the queue is there");
    let until_the_copy = vec![fine.clone(); 4];
    server.script(&[until_the_copy, vec![answer(403, "AccessDeniedException"), fine]].concat());
    let message = message();
    let denied = source.dead_letter(&message, "it failed").await.expect_err("denied");
    assert!(matches!(denied, SourceError::Refused { action: "sqs:DeleteMessage", .. }), "{denied:?}");
    assert!(source.trouble().is_some());
    source.dead_letter(&message, "it failed").await.expect("deleted");
    assert_eq!(source.trouble(), None);
    let of = |action: &str| {
        let asked = server.requests();
        asked.iter().filter(|request| request.header("x-amz-target").is_some_and(|target| target.ends_with(action))).count()
    };
    assert_eq!((of("SendMessage"), of("DeleteMessage")), (1, 2));
}

#[tokio::test]
async fn while_what_is_done_may_not_be_deleted_nothing_more_is_received() {
    let attributes = json!({ "Attributes": { "QueueArn": "arn:aws:sqs:us-east-1:123456789012:jobs" } }).to_string();
    let found = Answer::with(200, &[("content-type", "application/x-amz-json-1.0")], &attributes);
    let server = HttpServer::start(&[found.clone(), found, answer(403, "AccessDeniedException")]).await;
    let source = Sqs::connect(&settings(server.url("/123456789012/jobs").as_str())).await.expect("the queue is there");
    assert_eq!(source.trouble(), None);
    let message = message();
    let denied = source.ack(&message).await.expect_err("denied");
    assert!(matches!(denied, SourceError::Refused { action: "sqs:DeleteMessage", .. }), "{denied:?}");
    assert!(source.trouble().expect("a reason").contains("allow sqs:DeleteMessage on this queue"));
    let nothing = source.receive(1).await.expect_err("nothing is received");
    assert!(matches!(&nothing, SourceError::Refused { problem, .. } if problem.contains("sqs:DeleteMessage")), "{nothing:?}");
    let nothing = json!({}).to_string();
    server.script(&[Answer::with(200, &[("content-type", "application/x-amz-json-1.0")], &nothing)]);
    source.ack(&message).await.expect("deleted");
    assert_eq!(source.trouble(), None);
}
