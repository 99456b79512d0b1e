//! A signer that stops being good while the function runs: no job is lost, and no image leaves unsigned.

use atelier::content_credentials::verify::{State, verify};
use atelier::job::capabilities::Capabilities;
use atelier::protocol::reply::{self, JobOutcome};
use atelier::workflow::Spent;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::authority::Authority;
use super::{event, generated, image, signing, tasks};
use crate::bucket::Trouble;
use crate::stage::Stage;

#[tokio::test]
async fn a_certificate_that_expires_hands_jobs_back_before_they_cost_anything() {
    let now = OffsetDateTime::now_utc();
    let authority = Authority::issuing(|leaf| leaf.not_after = now + Duration::seconds(4));
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let (_, _, body, _) = tasks().remove(0);
    generated(&mut stage, "in-time", &body, json!({})).await;
    assert_eq!(stage.handler.spent(), None);
    while OffsetDateTime::now_utc() < now + Duration::seconds(4) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut late = body.clone();
    late["job_id"] = json!("late");
    // Even a last attempt is not reported as failed: a host does not count it.
    let mut event = event(&late);
    event["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!("3");
    let reply = stage.handle_for_host(event).await;
    let jobs = reply::decode(&reply).expect("our own reply");
    let error = jobs[0].error.as_ref().expect("an error");
    assert_eq!((jobs[0].outcome, error.code.as_str()), (JobOutcome::Retry, "signing_failed"));
    assert!(error.message.contains("expired on") && error.message.contains("content_credentials"), "{}", error.message);
    assert_eq!((stage.generated(), stage.handler.spent()), (1, Some(Spent::CannotSign)));
    assert!(!stage.bucket.path("generations/late").exists(), "nothing of it is in the bucket");
    assert!(stage.backend.arrived().iter().all(|notification| !notification.path.ends_with("/failed")));
}

/// What the store did not take is stored as it was signed, and not generated or signed again.
#[tokio::test]
async fn a_result_that_waits_for_the_store_is_a_signed_one() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let (_, _, mut body, _) = tasks().remove(0);
    body["job_id"] = json!("waits");
    stage.bucket.trouble(Trouble::ReadOnly);
    let waiting = reply::decode(&stage.handle_for_host(event(&body)).await).expect("our own reply");
    assert_eq!(waiting[0].outcome, JobOutcome::StoreUnavailable);
    stage.bucket.trouble(Trouble::None);
    let done = reply::decode(&stage.handle_for_host(event(&body)).await).expect("our own reply");
    assert_eq!((done[0].outcome, stage.generated()), (JobOutcome::Complete, 1));
    let file = std::fs::read(image(&stage, "waits")).expect("an image");
    let found = verify(&file, "image/png", Some(&authority.root)).expect("read").expect("credentials");
    assert_eq!(found.state, State::Trusted, "{found:?}");
}
