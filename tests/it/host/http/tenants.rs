//! Whose job it is: what the queue learns of it, and how many of one tenant may wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Front, generate, job_of};

fn of(id: &str, field: &str, value: Value) -> Value {
    let mut body = generate(id);
    body[field] = value;
    body
}

#[test]
fn a_tenant_is_named_by_the_job_or_by_its_user_and_makes_no_other_request_of_it() {
    let plain = job_of(&generate("a"));
    let user = json!({ "metadata": { "user_id": "u-17" } });
    let mut both = of("a", "callback", user.clone());
    both["tenant"] = json!("studio");
    for (body, tenant) in [
        (of("a", "tenant", json!("studio")), Some("studio")),
        (of("a", "tenant", json!("")), None),
        (of("a", "tenant", json!(null)), None),
        (of("a", "callback", user), Some("u-17")),
        (of("a", "callback", json!({ "metadata": { "user_id": 17 } })), None),
        (both, Some("studio")),
    ] {
        let job = job_of(&body);
        assert_eq!(job.tenant.as_deref(), tenant, "{body}");
        assert_eq!(job.fingerprint, plain.fingerprint, "{body}");
    }
    let tryon = json!({
        "job_id": "t", "task": "tryon", "person": "s3://b/p.png", "garments": ["s3://b/g.png"], "user_id": "u-1",
        "callback": { "metadata": { "user_id": "u-2" } },
    });
    assert_eq!(job_of(&tryon).tenant.as_deref(), Some("u-1"));
}

/// Jobs that a slow queue has not confirmed yet are no free places.
#[tokio::test]
async fn of_many_at_once_no_more_of_one_tenant_come_in_than_may_wait() {
    let front = Front::open_with(|http| {
        http.job_service.max_waiting = 100;
        http.job_service.max_waiting_per_tenant = Some(2);
    })
    .await;
    front.shelf.hangs.send_replace(true);
    let refused = AtomicUsize::new(0);
    let bodies: Vec<_> = (0..6).map(|n| of(&format!("job-{n}"), "tenant", json!("studio"))).collect();
    let posts = bodies.iter().map(async |body| {
        let (status, _) = front.post("/generate", body).await;
        refused.fetch_add(usize::from(status == StatusCode::TOO_MANY_REQUESTS), Ordering::SeqCst);
        status
    });
    let confirmed = async {
        // Each is refused or waits for the queue.
        while refused.load(Ordering::SeqCst) + front.shelf.tenants.lock().unwrap().len() < bodies.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        front.shelf.hangs.send_replace(false);
    };
    let (statuses, ()) = tokio::join!(join_all(posts), confirmed);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::ACCEPTED).count(), 2, "{statuses:?}");
}

#[tokio::test]
async fn only_so_many_jobs_of_one_tenant_may_wait() {
    let front = Front::open_with(|http| {
        http.job_service.max_waiting = 100;
        http.job_service.max_waiting_per_tenant = Some(2);
    })
    .await;
    let user = json!({ "metadata": { "user_id": "studio" } });
    for (body, expected) in [
        (of("a", "tenant", json!("studio")), StatusCode::ACCEPTED),
        (of("b", "callback", user.clone()), StatusCode::ACCEPTED),
        (of("a", "tenant", json!("studio")), StatusCode::ACCEPTED),
        (of("c", "callback", user), StatusCode::TOO_MANY_REQUESTS),
        (of("d", "tenant", json!("another")), StatusCode::ACCEPTED),
        (generate("e"), StatusCode::ACCEPTED),
        (generate("f"), StatusCode::ACCEPTED),
        (generate("g"), StatusCode::ACCEPTED),
    ] {
        let (status, answer) = front.post("/generate", &body).await;
        assert_eq!(status, expected, "{body}: {answer}");
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer["error"]["message"].as_str().unwrap().contains("host.max_waiting_per_tenant"), "{answer}");
        }
    }
    let tenants: Vec<_> = front.shelf.tenants.lock().unwrap().iter().map(|tenant| tenant.clone().unwrap_or_default()).collect();
    assert_eq!(tenants, ["studio", "studio", "another", "", "", ""]);
}
