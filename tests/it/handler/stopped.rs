//! A job that is stopped near its end, on its last attempt: it is never reported as failed once it may be done, and its notifications end in time.

use std::time::{Duration, SystemTime};

use atelier::protocol::reply::JobOutcome;
use atelier::workflow::Spent;
use atelier::workflow::control::{Control, NotificationMode, Shutdown};
use atelier_engine::EngineError;
use serde_json::Value;
use tokio::time::Instant;

use super::{body, brought_back, one, sqs};
use crate::backend::Backend;
use crate::stage::{Stage, raw};

const MARGIN: Duration = Duration::from_millis(200);

fn reported_as_failed(backend: &mut Backend) -> bool {
    backend.arrived().iter().any(|notification| notification.path.ends_with("/failed"))
}

#[tokio::test]
async fn a_job_whose_record_is_stored_is_not_reported_as_failed() {
    let mut stage = Stage::set().await;
    stage.backend.answer.send_replace(None);
    let (switch, shutdown) = Shutdown::channel();
    let control = Control::new(0, MARGIN, shutdown);
    let Stage { handler, backend, .. } = &mut stage;
    let event = raw(&one(body("stored"), 3));
    let (reply, notified) = tokio::join!(handler.handle(&event, &control), async {
        let notified = backend.terminal().await;
        switch.send(Some(Instant::now())).unwrap();
        notified
    });
    assert_eq!((reply.unwrap(), notified.path.as_str()), (brought_back(&["m0"]), "/api/webhooks/inference/complete"));
    assert!(!reported_as_failed(&mut stage.backend));
}

#[tokio::test]
async fn a_job_whose_record_is_on_its_way_is_not_reported_as_failed() {
    for notification_mode in [NotificationMode::Now, NotificationMode::Later] {
        let mut stage = Stage::set().await;
        stage.bucket.hold(Some("/result.json"));
        let (switch, shutdown) = Shutdown::channel();
        let control = Control::new(0, MARGIN, shutdown).notification_mode_by(notification_mode);
        let Stage { handler, bucket, .. } = &mut stage;
        let event = raw(&one(body("on-its-way"), 3));
        let (reply, ()) = tokio::join!(handler.handle(&event, &control), async {
            bucket.holding().await;
            switch.send(Some(Instant::now())).unwrap();
        });
        let reply: Value = reply.unwrap();
        assert_eq!(reply["batchItemFailures"], brought_back(&["m0"])["batchItemFailures"]);
        if notification_mode == NotificationMode::Later {
            assert_eq!(serde_json::from_value::<JobOutcome>(reply["jobs"][0]["outcome"].clone()).unwrap(), JobOutcome::Retry);
            assert_eq!(reply["jobs"][0]["notifications"], serde_json::json!([]));
        }
        assert!(!reported_as_failed(&mut stage.backend));
    }
}

#[tokio::test]
async fn a_drain_is_no_failure_where_the_host_need_not_count_it() {
    for (notification_mode, outcome) in [(NotificationMode::Now, None), (NotificationMode::Later, Some("retry"))] {
        let mut stage = Stage::set().await;
        stage.bucket.hold(Some("/0.png"));
        let (switch, shutdown) = Shutdown::channel();
        let control = Control::new(0, Duration::from_mins(1), shutdown).notification_mode_by(notification_mode);
        let Stage { handler, bucket, .. } = &mut stage;
        let event = raw(&one(body("drained"), 3));
        let (reply, ()) = tokio::join!(handler.handle(&event, &control), async {
            bucket.holding().await;
            switch.send(Some(Instant::now())).unwrap();
        });
        assert_eq!(reply.unwrap()["jobs"][0]["outcome"].as_str(), outcome);
        assert_eq!(
            reported_as_failed(&mut stage.backend),
            notification_mode == NotificationMode::Now,
            "SQS counts it, so its caller is notified"
        );
    }
}

#[tokio::test]
async fn notification_mode_of_a_failure_ends_before_the_deadline() {
    let mut stage = Stage::set().await;
    stage.backend.answer.send_replace(None);
    stage.next_generation(|| panic!("a bug in a kernel"));
    let limit = Duration::from_secs(2);
    let deadline = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + limit;
    let (_switch, shutdown) = Shutdown::channel();
    let control = Control::new(deadline.as_millis() as u64, Duration::from_millis(1_600), shutdown);
    let started = Instant::now();
    assert_eq!(stage.handler.handle(&raw(&one(body("untold"), 3)), &control).await.unwrap(), brought_back(&["m0"]));
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    assert!(reported_as_failed(&mut stage.backend), "it was tried");
}

#[tokio::test]
async fn a_gpu_that_failed_hands_back_the_whole_batch() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| {
        let text = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")";
        Err(EngineError::Candle(candle_core::Error::Msg(text.into())))
    });
    assert_eq!(stage.handler.spent(), None);
    let reply = stage.handle_for_host(sqs(&[(body("culprit"), 1, None), (body("innocent"), 3, None)])).await;
    let codes = [&reply["jobs"][0]["error"]["code"], &reply["jobs"][1]["error"]["code"]];
    assert_eq!(codes, ["gpu_failed", "shutting_down"]);
    assert_eq!([&reply["jobs"][0]["outcome"], &reply["jobs"][1]["outcome"]], ["retry", "retry"]);
    assert_eq!(stage.handler.spent(), Some(Spent::FatalDeviceError));
    assert_eq!(stage.generated(), 0);
}
