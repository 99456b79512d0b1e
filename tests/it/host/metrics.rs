//! /metrics of a whole host: every row of the table, the right numbers, and docs/metrics.md says the same.

use std::path::Path;
use std::process::Command;

use atelier::metrics::table::{self, Kind};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{HostProcess, eventually, job, signal};
use crate::servers::{environment, python_or_skip};

impl HostProcess {
    /// The value of one series; none when there is no such line.
    pub(super) async fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    /// Waits until a series has this value.
    pub(super) async fn expect_metric(&self, series: &str, value: f64) {
        let deadline = std::time::Instant::now() + super::WAIT_LIMIT;
        while self.metric(series).await != Some(value) {
            assert!(std::time::Instant::now() < deadline, "{series} is not {value}\n{}", self.get("/metrics").await);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn jobs_and_deaths_are_counted() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.expect_metric("atelier_handlers{state=\"idle\"}", 1.0).await;
    host.post("/generate", &job("first")).await;
    host.backend.terminal().await;
    host.expect_metric("atelier_jobs_total{outcome=\"complete\",source=\"spool\"}", 1.0).await;
    host.expect_metric("atelier_denoising_steps_total", 2.0).await;
    host.expect_metric("vton_inference_count", 1.0).await;
    host.expect_metric("atelier_webhook_attempts_total{kind=\"complete\",result=\"delivered\"}", 1.0).await;
    host.expect_metric("atelier_queue_depth{source=\"spool\"}", 0.0).await;
    assert!(host.metric("atelier_model_load_seconds{model=\"tiny-sd\"}").await.unwrap() > 0.0);

    host.bucket.hold(Some("/0.png"));
    host.post("/generate", &job("unlucky")).await;
    host.bucket.holding().await;
    host.expect_metric("atelier_handlers{state=\"busy\"}", 1.0).await;
    signal(Signal::KILL, *host.handlers().last().unwrap());
    host.bucket.hold(None);
    host.backend.terminal().await;
    host.expect_metric("atelier_handler_restarts_total{cause=\"signal\"}", 1.0).await;
    host.expect_metric("atelier_jobs_total{outcome=\"retry\",source=\"spool\"}", 1.0).await;

    let text = host.get("/metrics").await;
    let mut untouched =
        vec![table::LORA_CACHE.0.name, table::QUEUE_AGE.0.name, table::BLOCKED.0.name, table::USER_STEPS.0.name];
    // Of models that share a device.
    untouched.extend([table::MODEL_SWAPS.0.name, table::SWAP_SECONDS.0.name]);
    for row in table::TABLE.iter().filter(|row| !untouched.contains(&row.name)) {
        let kind = match row.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {kind}\n", row.name)), "{} is missing in\n{text}", row.name);
    }
    parses(&text);
}

/// By the parser of Prometheus's own Python client.
fn parses(text: &str) {
    let Some(venv) = python_or_skip("reading /metrics with Prometheus's parser") else { return };
    let script = "import sys; from prometheus_client.parser import text_string_to_metric_families as read; \
                  print(len(list(read(sys.argv[1]))))";
    let output = Command::new(venv.join("bin/python")).args(["-c", script, text]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn progress_of_a_running_job_is_seen() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let body = json!({ "job_id": "slow", "prompt": "a red mug on the beach", "steps": 200, "num_images": 4 });
    host.post("/generate", &body).await;
    host.is_generating("slow").await;
    // And what runs can be cancelled, between two of its steps.
    host.cancel("slow").await;
    let notified = host.backend.terminal().await;
    assert_eq!((&notified.body["job_id"], &notified.body["error"]["code"]), (&json!("slow"), &json!("cancelled")));
    eventually("it is settled", || host.spooled("running").is_empty()).await.unwrap();
    let job_status: Value = serde_json::from_str(&host.get("/jobs/slow").await).unwrap();
    assert_eq!(job_status["state"], "cancelled", "{job_status}");
}

/// `ATELIER_WRITE_DOCS` set: the table of docs/metrics.md is written anew instead of being compared.
#[test]
fn the_documentation_has_the_table() {
    const BEGIN: &str = "<!-- metrics: written by tests/it/host/metrics.rs -->\n";
    const END: &str = "<!-- end of metrics -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("where the table begins");
    let (table, after) = rest.split_once(END).expect("where the table ends");
    if environment("ATELIER_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table::markdown())).unwrap();
        return;
    }
    assert_eq!(table, table::markdown(), "run it once with ATELIER_WRITE_DOCS=1");
}
