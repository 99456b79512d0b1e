//! Hosts that cannot do their work as they are configured say so: by their readiness, by the answer to a job, and at start.

use reqwest::{Client, StatusCode};
use serde_json::Value;

use super::{HostProcess, job};
use crate::stage::TOKEN;

#[tokio::test]
async fn a_host_whose_handlers_never_get_ready_is_not_ready_and_says_why() {
    for (changes, reason) in
        [(("ATELIER__STORE__BUCKET", "no-such-bucket"), "no-such-bucket"), (("ATELIER_MODEL", "sd15"), "sd15")]
    {
        let mut host = HostProcess::start(&[changes], &[]).await;
        host.wait_for("listening for HTTP", 1).await;
        // Also while the second handler is being started.
        host.wait_for("a handler was started", 2).await;
        let client = Client::builder().no_proxy().build().unwrap();
        let test = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
        assert_eq!(test.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(test.json::<Value>().await.unwrap()["status"], "failed", "{}", host.log());
        let asked = client.post(format!("http://{}/generate", host.address())).header("x-internal-auth", TOKEN);
        let answer = asked.json(&job("job-1")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "model_not_ready");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{reason}: {answer}");
    }
}

#[tokio::test]
async fn a_host_that_was_ready_queues_jobs_while_a_handler_is_started_again() {
    let mut host = HostProcess::start(&[("ATELIER__HOST__HANDLER__INITIAL_BACKOFF_MS", "60000")], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    super::signal(rustix::process::Signal::KILL, host.handlers()[0]);
    host.wait_for("a handler ended; another is started after a pause", 1).await;
    let answer: Value = serde_json::from_str(&host.post("/generate", &job("job-1")).await).unwrap();
    assert_eq!(answer["status"], "accepted");
    // It may have been taken just before the dead handler was known as one.
    assert_eq!(host.spooled("waiting").len() + host.spooled("running").len(), 1);
}

#[tokio::test]
async fn a_host_without_a_token_warns() {
    let none: &[(&str, &str)] = &[("INTERNAL_API_TOKEN", ""), ("BACKEND_API_URL", "")];
    let off: &[(&str, &str)] = &[("ATELIER__SECURITY__REQUIRE_AUTH", "false")];
    for (changes, words) in [(none, "internal_auth_token is not set"), (off, "require_auth is false")] {
        let mut host = HostProcess::start(changes, &[]).await;
        host.wait_for("listening for HTTP", 1).await;
        assert!(host.log().contains(words), "{words}: {}", host.log());
    }
}
