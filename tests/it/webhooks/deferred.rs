//! Notifications that another process sends: the same id, the same bytes, its own token and signature.

use atelier::job::notification::{Notification, NotificationTarget};
use atelier::job::outcome::{JobError, RetryPolicy};
use atelier::notify::{Notifier, Settings};
use serde_json::json;

use super::{SECRET, TOKEN, notifier, settings, verify};
use crate::outbound::outbound;
use crate::servers::http::{Answer, HttpServer};
use crate::store::{job, record_of};

#[tokio::test]
async fn a_notification_survives_its_way_through_another_process() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let hook = HttpServer::start(&[Answer::status(200)]).await;
    for callback in [json!({}), json!({ "url": hook.url("/hook?n=1").to_string() })] {
        let writer = notifier(&settings(&backend));
        let sender = notifier(&settings(&backend));
        let job = job(&json!({ "callback": callback, "prompt": "Füchschen \u{1F98A} \"quoted\"" }));
        let mut notifications = writer.complete(&job, &record_of(&job, Vec::new()), &[]).expect("written");
        notifications.extend(writer.failed(&NotificationTarget::from(&job), &JobError::Cancelled, 2).expect("written"));
        let handed_over = serde_json::to_string(&notifications).expect("JSON");
        assert!(!handed_over.contains(TOKEN) && !handed_over.contains(SECRET), "a secret left the process");
        writer.send_all(&notifications).await.expect("delivered");
        sender.send_all(&serde_json::from_str::<Vec<Notification>>(&handed_over).expect("read back")).await.expect("delivered");
    }
    for requests in [backend.requests(), hook.requests()] {
        let [complete, failed, complete_later, failed_later] = &requests[..] else { panic!("four requests: {requests:?}") };
        for (now, later) in [(complete, complete_later), (failed, failed_later)] {
            verify(later);
            assert_eq!((&now.body, &now.path, &now.method), (&later.body, &later.path, &later.method));
            assert_eq!(now.header("webhook-id"), later.header("webhook-id"));
            assert_eq!(now.header("authorization"), later.header("authorization"));
        }
    }
    assert!(hook.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn one_receiver_that_is_deaf_does_not_keep_another_from_hearing() {
    let deaf = HttpServer::start(&[Answer::status(500)]).await;
    let hears = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&deaf));
    let one = job(&json!({}));
    let other = job(&json!({ "job_id": "job-2", "callback": { "url": hears.url("/").to_string() } }));
    let mut notifications = notifier.failed(&NotificationTarget::from(&one), &JobError::Cancelled, 1).expect("written");
    notifications.extend(notifier.failed(&NotificationTarget::from(&other), &JobError::Cancelled, 1).expect("written"));
    let error = notifier.send_all(&notifications).await.expect_err("one was not delivered");
    assert_eq!(error.retry_policy(), RetryPolicy::Retry);
    assert_eq!(hears.requests().len(), 1);
}

#[tokio::test]
async fn a_sender_without_the_configuration_says_so() {
    let backend = HttpServer::start(&[]).await;
    let job = job(&json!({}));
    let notifications =
        notifier(&settings(&backend)).failed(&NotificationTarget::from(&job), &JobError::Cancelled, 1).expect("written");
    let other = Notifier::new(&Settings::default(), outbound(&[])).expect("settings");
    let error = other.send_all(&notifications).await.expect_err("no backend there");
    assert!(error.to_string().contains("failed: notify.backend_api_url is not set where it is to be sent"), "{error}");
}
