//! A whole host: a caller's trace comes out where its job does, and every line of the log about a job says which.

use reqwest::Method;
use serde_json::{Value, json};

use super::{HostProcess, job};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn post(host: &HostProcess, body: &Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(Method::POST, format!("http://{}/generate", host.address())).json(body);
    let request = request.header("x-internal-auth", crate::stage::TOKEN).header("traceparent", PARENT);
    assert_eq!(request.send().await.unwrap().status().as_u16(), 202);
}

#[tokio::test]
async fn a_trace_goes_through_the_host_and_jobs_are_found_in_the_log_at_every_level() {
    // At `warn` as well: what says which job it was must not be filtered away from the line that says what went wrong.
    for level in ["info,atelier=debug", "warn,atelier::start=info"] {
        let mut host = HostProcess::start(&[("LOG_LEVEL", level)], &[]).await;
        host.ready().await;
        // A private address as callback is refused at the door; what lies in a bucket is only known to the handler.
        let mut lacking = job("lacking");
        lacking["lora"] = json!([{ "url": "s3://no-such-bucket/loras/none.safetensors" }]);
        for body in [job("fine"), lacking] {
            post(&host, &body).await;
            let notified = host.backend.terminal().await;
            assert_eq!((&notified.body["job_id"], notified.traceparent.as_deref()), (&body["job_id"], Some(PARENT)));
        }
        let lines: Vec<Value> = host.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of_jobs: Vec<&Value> = lines.iter().filter(|line| line.get("job_id").is_some()).collect();
        for line in &of_jobs {
            assert!(line["source"].is_string() && line["attempt"] == 1, "{line}");
            assert_eq!(line["traceparent"], PARENT, "{line}");
        }
        let failed = of_jobs.iter().find(|line| line["message"] == "job failed").expect("the handler's line");
        assert_eq!((&failed["job_id"], &failed["source"]), (&json!("lacking"), &json!("sqs")));
        let settled = of_jobs.iter().any(|line| line["message"] == "a message was settled" && line["source"] == "spool");
        assert!(settled || level.starts_with("warn"), "the host's line");
    }
}
