//! Whom a notification of an end reaches, and under which id.

use atelier::job::notification::{Notification, NotificationTarget};
use atelier::job::outcome::JobError;
use serde_json::{Value, json};

use super::{notifier, settings};
use crate::servers::http::{Answer, HttpServer};
use crate::store::{job, record_of};

#[tokio::test]
async fn ids_of_jobs_under_the_default_prefix_are_those_of_earlier_releases() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    let id = |notifications: Vec<Notification>| notifications[0].id.clone();
    for (prefix, complete, failed) in [
        (None, "msg_28f5ea596959c8cd905a778e6a1f1876", "msg_68f71d216f986dea7b76a829b146cdd1"),
        (Some("generations/"), "msg_28f5ea596959c8cd905a778e6a1f1876", "msg_68f71d216f986dea7b76a829b146cdd1"),
        (Some("other/"), "msg_677eaa9dd03102b053868952e44f2cb2", "msg_27a2b5e4c8923fd85f19917300164afb"),
    ] {
        let job = job(&prefix.map_or(json!({}), |prefix| json!({ "output": { "prefix": prefix } })));
        assert_eq!(id(notifier.complete(&job, &record_of(&job, Vec::new()), &[]).expect("written")), complete);
        let target = NotificationTarget::from(&job);
        assert_eq!(id(notifier.failed(&target, &JobError::Cancelled, 1).expect("written")), failed);
    }
}

#[tokio::test]
async fn a_conflict_is_reported_to_the_losers_own_receiver_alone() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let hook = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    for callback in [json!({}), json!({ "url": hook.url("/hook").to_string(), "metadata": { "n": 1 } })] {
        let job = job(&json!({ "callback": callback }));
        let error = JobError::Conflict { job_id: job.id.clone() };
        let notifications = notifier.failed(&NotificationTarget::from(&job), &error, 1).expect("written");
        assert_eq!(notifications.len(), 1);
        notifier.send_all(&notifications).await.expect("delivered");
    }
    for (server, metadata) in [(&backend, json!({})), (&hook, json!({ "n": 1 }))] {
        let [request] = &server.requests()[..] else { panic!("one request each") };
        let notified = request.json();
        assert_eq!((&notified["type"], &notified["job_id"]), (&json!("inference.failed"), &Value::Null));
        assert_eq!((&notified["conflicting_job_id"], &notified["error"]["code"]), (&json!("job-1"), &json!("conflict")));
        assert_eq!(notified["metadata"], metadata);
    }
}
