//! What settles messages, against what fails it: a panic, an ack that is not taken, an image that is gone, a spool that somebody deleted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atelier::host::answer::Ended;
use atelier::host::cause::Cause;
use atelier::host::dispatch::{Assignment, Dispatcher, HandlerPlace, intake};
use atelier::host::ended::{End, EndedJob};
use atelier::host::jobs::Jobs;
use atelier::host::sharing;
use atelier::job::notification::{AssetResult, Kind, Message, Notification, TryOnResult};
use atelier::job::outcome::{JobError, Problem, Record, StoredImage};
use atelier::job::task::tryon::Requester;
use axum::http::StatusCode;
use reqwest::Client;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::bench::{Bench, in_flight, in_flight_with, job_of};
use super::http::catalogue;
use super::shelf::{Does, Shelf};
use super::{HostProcess, WAIT_LIMIT, eventually, job};
use crate::bucket::Trouble;

/// The only handler, of the only model.
const ALONE: HandlerPlace = HandlerPlace { model: 0, share: None };

/// What a queue that does this is asked for one message that a function has taken.
async fn asked(action: &'static str, does: Does) -> Vec<&'static str> {
    let bench = Bench::open(|settings| settings.backend_api_url = None).await;
    let shelf = Arc::new(Shelf::that(action, does));
    bench.taken(&shelf, &job("job-1")).await;
    shelf.asked()
}

#[tokio::test]
async fn a_panic_while_a_message_is_settled_puts_it_back() {
    assert_eq!(asked("ack", Does::Panic).await, ["ack", "retry"]);
}

#[tokio::test]
async fn an_ack_that_is_not_taken_is_repeated_until_it_is() {
    assert_eq!(asked("ack", Does::Away(4)).await, ["ack"; 5]);
}

/// Once, a message whose dead-letter queue was away for a moment stayed in flight for as long as its host lived; and one that it was
/// not allowed to move came back, and was reported, at every visibility timeout.
#[tokio::test]
async fn a_dead_letter_that_is_not_taken_is_repeated_until_it_is() {
    for does in [Does::Away(4), Does::Denied(4)] {
        let bench = Bench::open(|_| ()).await;
        let shelf = Arc::new(Shelf::that("dead_letter", does));
        let problem = Problem::from(&JobError::HandlerDied { problem: "it died".into() });
        bench.acknowledger.notify(in_flight(&shelf, &job("job-1")), EndedJob::failed(End::DeadLetter, 1, problem), None);
        bench.settled().await;
        assert_eq!(shelf.asked(), ["dead_letter"; 5]);
        assert_eq!(shelf.reasons(), ["it died"]);
        let notified = bench.backend.accepted();
        let paths: Vec<_> = notified.iter().map(|notified| notified.path.as_str()).collect();
        assert_eq!(paths, ["/api/webhooks/inference/failed"]);
    }
}

/// The host ends, and the queue does not let the message wait: it must not come back as one that was never begun.
#[tokio::test]
async fn what_cannot_be_deferred_when_the_host_ends_is_put_back_with_its_attempt_counted() {
    let bench = Bench::open(|_| ()).await;
    bench.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    let shelf = Arc::new(Shelf::that("defer", Does::Away(usize::MAX)));
    let problem = Problem::from(&JobError::HandlerDied { problem: "it died".into() });
    bench.acknowledger.outbox.draining.cancel();
    bench.acknowledger.notify(in_flight(&shelf, &job("job-1")), EndedJob::failed(End::Failed, 1, problem), None);
    bench.settled().await;
    assert_eq!(shelf.asked(), ["defer", "retry"]);
}

fn notification(message: Message) -> Notification {
    Notification { id: "msg_1".into(), trace: None, message }
}

/// Tells that a job is complete, by this notification, until its message is settled; the reasons of its dead letters.
async fn given_up(bench: &Bench, notification: Notification) -> Vec<String> {
    let shelf = Arc::new(Shelf::default());
    bench.acknowledger.notify(in_flight(&shelf, &job("job-1")), EndedJob::complete(1), Some(vec![notification]));
    bench.settled().await;
    assert_eq!(shelf.asked(), ["dead_letter"], "it waits for nothing that does not come");
    shelf.reasons()
}

#[tokio::test]
async fn a_notification_whose_image_is_gone_is_given_up_and_pauses_nobody() {
    let bench = Bench::open(|_| ()).await;
    let body = job("job-1");
    let image = StoredImage {
        bucket: atelier::demo::local::BUCKET.into(),
        key: "generations/job-1/gone/0.png".into(),
        content_type: "image/png".into(),
        width_px: 8,
        height_px: 8,
        bytes: 1,
        seed: 1,
        sha256: None,
        invisible_mark: None,
    };
    let record = super::http::record(&job_of(&body), image.clone());
    bench.store.put_record(&job_of(&body).output.prefix, &record).await.unwrap();
    let result = AssetResult {
        job_id: "job-1".into(),
        requester: Requester::default(),
        node_id: "gpu-1".into(),
        model_version: "tiny-sd".into(),
        inference_time_ms: 1,
        result: TryOnResult::Images(vec![image]),
    };
    let reasons = given_up(&bench, notification(Message::AssetService(result))).await;
    assert!(reasons[0].starts_with("webhook_failed: ") && reasons[0].contains("gone/0.png does not exist"), "{reasons:?}");
    assert!(!bench.acknowledger.store_health.is_away(), "the store is well");
}

#[tokio::test]
async fn a_notification_that_this_host_has_no_address_for_is_given_up() {
    let bench = Bench::open(|settings| settings.backend_api_url = None).await;
    let body = job("job-1");
    let record =
        super::http::record(&job_of(&body), bench.store.put_image(&job_of(&body), "t", 0, 8, 8, 1, "x").await.unwrap());
    bench.store.put_record(&job_of(&body).output.prefix, &record).await.unwrap();
    let backend = Message::Backend { kind: Kind::Complete, body: "{}".into() };
    let reasons = given_up(&bench, notification(backend)).await;
    assert!(reasons[0].contains("this host has no address for it"), "{reasons:?}");
}

/// The id is another request's by then, and that one is complete. Its caller must not read that it failed, nor the other one nothing.
#[tokio::test]
async fn a_failure_that_is_told_late_is_a_conflict_where_the_id_belongs_to_another_by_then() {
    let mut bench = Bench::open(|settings| settings.give_up_after_hours = 1.0).await;
    bench.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    let shelf = Arc::new(Shelf::default());
    let problem = Problem::from(&JobError::HandlerDied { problem: "it died".into() });
    bench.acknowledger.notify(in_flight(&shelf, &job("job-1")), EndedJob::failed(End::Failed, 1, problem), None);
    bench.backend.next().await;
    let mut other = job("job-1");
    other["prompt"] = "another".into();
    let other = job_of(&other);
    let image = bench.store.put_image(&other, "t", 0, 8, 8, 1, "x").await.unwrap();
    bench.store.put_record(&other.output.prefix, &super::http::record(&other, image)).await.unwrap();
    bench.backend.answer.send_replace(Some(StatusCode::OK));
    bench.settled().await;
    let told = bench.backend.accepted().pop().expect("it is told");
    assert_eq!((&told.body["job_id"], &told.body["error"]["code"]), (&Value::Null, &"conflict".into()), "{}", told.body);
    assert_eq!(told.body["conflicting_job_id"], "job-1");
    assert_eq!(shelf.asked(), ["dead_letter"]);
}

/// What a handler has sent when it is killed is on its way: a record that comes seconds later is the job's end, not `failed`.
#[tokio::test]
async fn a_record_that_was_on_its_way_when_its_handler_died_is_waited_for() {
    let bench = Bench::open(|settings| settings.give_up_after_hours = 1.0).await;
    let body = job("job-1");
    let job = job_of(&body);
    bench.acknowledger.jobs.start(&job, 3);
    bench.acknowledger.jobs.progress("job-1", 2, 2);
    let shelf = Arc::new(Shelf::default());
    let last = in_flight_with(&shelf, &body, |message| message.attempt = 3);
    let died = Ended::Died(Cause::Signal(9));
    bench.acknowledger.acknowledge(Assignment::Messages(vec![last]), died);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.backend.accepted().len(), 0, "nothing is known yet");
    let image = bench.store.put_image(&job, "t", 0, 8, 8, 1, "x").await.unwrap();
    bench.store.put_record(&job.output.prefix, &super::http::record(&job, image)).await.unwrap();
    bench.settled().await;
    let told: Vec<String> = bench.backend.accepted().into_iter().map(|told| told.path).collect();
    assert_eq!(told, ["/api/webhooks/inference/complete"]);
    assert_eq!(shelf.asked(), ["ack"]);
}

/// Decision f: kept with the reason, whatever kept its caller from being notified.
#[tokio::test]
async fn what_nobody_may_be_told_of_is_dead_lettered_with_the_reason() {
    for url in ["https://10.1.2.3/x", "https://169.254.169.254/", "https://[::1]/hook", "https://localhost/hook"] {
        let bench = Bench::open(|settings| settings.backend_api_url = None).await;
        let mut body = job("job-1");
        body["callback"] = serde_json::json!({ "url": url });
        for (end, reason) in
            [(End::Failed, "it is too large"), (End::Complete, "webhook_failed: no one can be notified: callback.url")]
        {
            let shelf = Arc::new(Shelf::default());
            let ended = if end == End::Complete {
                let job = job_of(&body);
                let image = bench.store.put_image(&job, "t", 0, 8, 8, 1, "x").await.unwrap();
                bench.store.put_record(&job.output.prefix, &super::http::record(&job, image)).await.unwrap();
                EndedJob::complete(1)
            } else {
                let error = JobError::Input { field: "lora".into(), problem: "it is too large".into(), cause: None };
                EndedJob::failed(End::Failed, 1, Problem::from(&error))
            };
            bench.acknowledger.notify(in_flight(&shelf, &body), ended, None);
            eventually("it is settled", || !shelf.asked().is_empty()).await.unwrap();
            assert_eq!(shelf.asked(), ["dead_letter"], "{url}");
            assert!(shelf.reasons()[0].contains(reason), "{url}: {:?}", shelf.reasons());
        }
        bench.settled().await;
    }
}

/// From when its job ended on, whoever was there: not from when a host came to know of it.
#[tokio::test]
async fn what_nobody_took_while_no_host_was_there_is_given_up_after_three_rounds() {
    for (sent_hours_ago, asked) in [(5, vec!["dead_letter"]), (0, vec!["defer"])] {
        let mut bench = Bench::open(|settings| settings.give_up_after_hours = 4.0).await;
        bench.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
        let body = job("job-1");
        let image = bench.store.put_image(&job_of(&body), "t", 0, 8, 8, 1, "x").await.unwrap();
        let ago = |hours| SystemTime::now() - Duration::from_hours(hours);
        let finished_at_s = ago(5).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let record = Record { finished_at_s, ..super::http::record(&job_of(&body), image) };
        bench.store.put_record(&job_of(&body).output.prefix, &record).await.unwrap();
        let shelf = Arc::new(Shelf::default());
        let again = in_flight_with(&shelf, &body, |message| {
            message.attempt = 2;
            message.sent = Some(ago(sent_hours_ago));
        });
        let (dispatcher, _cancels) = Dispatcher::new(&[ALONE], 1, &sharing::Settings::default(), Arc::new(Jobs::default()));
        if sent_hours_ago == 0 {
            // What would wait here is handed back.
            bench.acknowledger.outbox.draining.cancel();
        }
        bench.acknowledger.resume(again, dispatcher);
        bench.settled().await;
        assert_eq!(shelf.asked(), asked, "sent {sent_hours_ago} h ago");
        // Late ones have some rounds all the same: the clock may have been set.
        assert_eq!(bench.backend.arrived().len(), if sent_hours_ago == 0 { 1 } else { 3 });
        assert_eq!(bench.backend.accepted().len(), 0);
    }
}

/// What lies where the record belongs is no record, and will be none.
#[tokio::test]
async fn a_failure_beside_an_unreadable_record_is_reported_and_pauses_nobody() {
    let bench = Bench::open(|_| ()).await;
    let record = bench.bucket.path("generations/job-1/result.json");
    std::fs::create_dir_all(record.parent().unwrap()).unwrap();
    std::fs::write(&record, "<html>no record</html>").unwrap();
    let shelf = Arc::new(Shelf::default());
    let problem = Problem::from(&JobError::HandlerDied { problem: "it died".into() });
    bench.acknowledger.notify(in_flight(&shelf, &job("job-1")), EndedJob::failed(End::Failed, 1, problem), None);
    bench.settled().await;
    assert_eq!(shelf.asked(), ["ack"]);
    let notified = bench.backend.accepted();
    assert_eq!(notified.iter().map(|notified| notified.path.as_str()).collect::<Vec<_>>(), ["/api/webhooks/inference/failed"]);
    assert!(!bench.acknowledger.store_health.is_away());
}

#[tokio::test]
async fn a_source_that_does_not_close_keeps_no_host_from_ending() {
    let shelf = Arc::new(Shelf::that("close", Does::Hang));
    let stop = CancellationToken::new();
    stop.cancel();
    let (dispatcher, _cancels) = Dispatcher::new(&[ALONE], 1, &sharing::Settings::default(), Arc::new(Jobs::default()));
    let bench = Bench::open(|_| ()).await;
    let ended = intake::run(shelf.clone(), bench.acknowledger.clone(), dispatcher, Arc::new(catalogue()), stop);
    tokio::time::timeout(WAIT_LIMIT, ended).await.expect("half a minute is for the source to close");
    assert_eq!(shelf.asked(), ["close"]);
}

/// Messages that came before are looked up first; meanwhile a host asks for no more than its handlers can take.
#[tokio::test]
async fn what_is_looked_up_counts_into_what_a_host_asks_for() {
    const JOBS: usize = 6;
    let mut host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    host.kill();
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    for number in 0..JOBS {
        let id = format!("again-{number}");
        let name = format!("{now_ms:013}~{now_ms:013}~1~unique-{number}~{id}");
        std::fs::write(host.directory.path().join("spool/waiting").join(name), job(&id).to_string()).unwrap();
    }
    host.bucket.trouble(Trouble::Slow(Duration::from_millis(150)));
    host.restart();
    let mut most = 0;
    let done = eventually("all are complete", || {
        most = most.max(host.spooled("running").len());
        host.backend.accepted().len() == JOBS
    });
    done.await.unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    // One runs, and one is being told of.
    assert!((1..=3).contains(&most), "{most} at once for one handler");
}

#[tokio::test]
async fn a_spool_that_somebody_deletes_makes_the_host_unready_and_does_not_keep_it_from_ending() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    host.bucket.hold(Some("/0.png"));
    host.post("/generate", &job("orphan")).await;
    host.bucket.holding().await;
    host.delete_spool();
    host.bucket.hold(None);
    assert_eq!(host.backend.terminal().await.path, "/api/webhooks/inference/complete", "what runs is brought to its end");
    host.wait_for("a message was not settled", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let reason = answer.json::<Value>().await.unwrap()["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("the directory was deleted while the host runs"), "{reason}");
    let asked = client.post(format!("http://{}/generate", host.address())).header("x-internal-auth", crate::stage::TOKEN);
    let refused: Value = asked.json(&job("late")).send().await.unwrap().json().await.unwrap();
    assert_eq!(refused["error"]["code"], "queue_unavailable", "{refused}");
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    eventually("the log is written", || !host.logged("drained").is_empty()).await.unwrap();
}
