//! Refused messages of a host: dead-lettered with the reason where no one could be notified, acknowledged where someone was.

use serde_json::{Value, json};

use super::{HostProcess, eventually, job};

/// A host that finds a wrong job and one without a readable id in its spool.
async fn with_refused(changes: &[(&str, &str)]) -> HostProcess {
    let mut host = HostProcess::start(changes, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    let mut wrong = job("wrong");
    wrong["steps"] = json!(0);
    host.spool("wrong", &wrong);
    host.spool("nameless", &json!({ "prompt": "a mug" }));
    host.restart();
    host
}

async fn job_report(host: &HostProcess) {
    let settled = eventually("both are settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty());
    settled.await.unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
}

fn names(host: &HostProcess) -> Vec<String> {
    host.spooled("dead").iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn what_nobody_could_be_notified_of_is_dead_lettered() {
    let mut host = with_refused(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    job_report(&host).await;
    let dead = names(&host);
    assert!(dead.iter().any(|name| name.contains("nameless")), "{dead:?}");
    assert!(!dead.iter().any(|name| name.contains("wrong")), "its sender was notified: {dead:?}");
    let reasons: Vec<Value> = host.logged("a job failed for good");
    assert!(reasons.iter().any(|line| line["error"].as_str().unwrap().contains("job_id: is required")), "{reasons:?}");
    let metrics = host.get("/metrics").await;
    for outcome in ["dead_letter", "failed"] {
        let line = format!("atelier_refused_total{{outcome=\"{outcome}\",source=\"spool\"}} 1");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn where_nobody_listens_or_all_is_kept_every_refused_message_is_dead_lettered() {
    for changes in [("BACKEND_API_URL", ""), ("ATELIER__SOURCES__SPOOL__KEEP_REFUSED", "true")] {
        let mut host = with_refused(&[changes]).await;
        host.wait_for("a handler is ready", 2).await;
        job_report(&host).await;
        let dead = names(&host);
        for name in ["nameless", "wrong"] {
            assert!(dead.iter().any(|found| found.contains(name)), "{changes:?}: {name} is not among {dead:?}");
        }
    }
}
