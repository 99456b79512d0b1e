//! A whole host: a caller's trace comes out where its job does, and every line of the log about a job says which.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Status;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use reqwest::Method;
use serde_json::{Value, json};

use super::{HostProcess, job};
use crate::collector::{Collector, Exported};

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

/// Every span that begins at `parent`, by name; a tree has no end that leads nowhere.
fn below<'a>(exported: &'a [Exported], parent: &[u8]) -> Vec<&'a Exported> {
    exported.iter().filter(|one| one.span.parent_span_id == parent).collect()
}

fn exporting(collector: &Collector) -> [(String, String); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), collector.endpoint()), ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "100".to_owned())]
}

#[tokio::test]
async fn one_trace_has_the_job_at_the_host_and_in_the_handler_with_its_steps_and_its_webhook() {
    let collector = Collector::start().await;
    let settings = exporting(&collector);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut host = HostProcess::start(&settings, &[]).await;
    host.ready().await;
    post(&host, &job("traced")).await;
    let notified = host.backend.terminal().await;
    let is_webhook = |one: &Exported| one.span.name == "webhook" && Some(one.traceparent()) == notified.traceparent;
    let exported = collector
        .until(|exported| exported.iter().any(is_webhook) && exported.iter().filter(|one| one.span.name == "job").count() == 2)
        .await;
    let of_caller = PARENT.split('-').collect::<Vec<_>>();
    for one in &exported {
        assert_eq!(base16ct::lower::encode_string(&one.span.trace_id), of_caller[1], "{one:?}");
        assert_eq!(one.service, "atelier");
        assert_ne!(one.span.status.as_ref().map(Status::code), Some(StatusCode::Error), "{one:?}");
    }
    let caller: Vec<u8> = base16ct::lower::decode_vec(of_caller[2]).unwrap();
    let [at_host] = below(&exported, &caller)[..] else { panic!("{exported:?}") };
    assert_eq!(at_host.attribute("source"), Some(&any_value::Value::StringValue("spool".into())), "{at_host:?}");
    let in_handler = below(&exported, &at_host.span.span_id);
    let in_handler = in_handler.iter().find(|one| one.span.name == "job").expect("the handler's span is below the host's");
    assert_eq!([at_host.span.kind(), in_handler.span.kind()], [SpanKind::Consumer; 2], "it comes out of a queue");
    let steps: BTreeSet<&str> = below(&exported, &in_handler.span.span_id).iter().map(|one| one.span.name.as_str()).collect();
    for step in ["fetch", "preprocess", "infer", "postprocess", "encode", "store", "notify"] {
        assert!(steps.contains(step), "{step} is not in {steps:?}");
    }
    let infer = exported.iter().find(|one| one.span.name == "infer").unwrap();
    assert_eq!(infer.span.events.len() as u64, job("traced")["steps"].as_u64().unwrap(), "a moment for each denoising step");
    assert_eq!(infer.span.kind(), SpanKind::Internal);
    // What the receiver was sent names the very attempt, whose parent is a span of this trace.
    let webhook = exported.iter().find(|one| is_webhook(one)).unwrap();
    assert_eq!(webhook.span.kind(), SpanKind::Client);
    assert!(exported.iter().any(|one| one.span.span_id == webhook.span.parent_span_id), "{webhook:?}");
    // What only the collector is told of.
    for line in host.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line.as_object().unwrap().keys().all(|field| !field.starts_with("otel.")), "{line}");
    }
}

/// Nothing has put it into a queue: who sent it waits.
#[tokio::test]
async fn a_job_whose_caller_waits_is_a_request_in_the_trace() {
    let collector = Collector::start().await;
    let settings = exporting(&collector);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let host = HostProcess::start(&settings, &[]).await;
    host.ready().await;
    host.post("/infer", &job("waited-for")).await;
    let is_job = |one: &&Exported| one.span.name == "job";
    let exported = collector.until(|exported| exported.iter().filter(is_job).count() == 2).await;
    for one in exported.iter().filter(is_job) {
        assert_eq!(one.span.kind(), SpanKind::Server, "{one:?}");
    }
}

#[tokio::test]
async fn a_caller_whose_trace_is_not_sampled_exports_nothing_and_a_failure_is_an_error_in_the_trace() {
    let collector = Collector::start().await;
    let settings = exporting(&collector);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut host = HostProcess::start(&settings, &[]).await;
    host.ready().await;
    let unsampled = PARENT.replace("-01", "-00");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(Method::POST, format!("http://{}/generate", host.address())).json(&job("unsampled"));
    let request = request.header("x-internal-auth", crate::stage::TOKEN).header("traceparent", &unsampled);
    assert_eq!(request.send().await.unwrap().status().as_u16(), 202);
    let traceparent = host.backend.terminal().await.traceparent.unwrap();
    assert_eq!((&traceparent[..35], &traceparent[52..]), (&unsampled[..35], "-00"), "the trace goes on all the same");
    let mut lacking = job("lacking");
    lacking["lora"] = json!([{ "url": "s3://no-such-bucket/loras/none.safetensors" }]);
    host.post("/generate", &lacking).await;
    assert_eq!(host.backend.terminal().await.body["job_id"], "lacking");
    let is_handlers = |one: &Exported| one.attribute("source") == Some(&any_value::Value::StringValue("sqs".into()));
    let exported = collector.until(|exported| exported.iter().any(is_handlers)).await;
    for one in &exported {
        assert_ne!(base16ct::lower::encode_string(&one.span.trace_id), &unsampled[3..35], "{one:?}");
    }
    for failed in [exported.iter().find(|one| is_handlers(one)), exported.iter().find(|one| one.span.name == "fetch")] {
        let failed = failed.unwrap();
        assert_eq!(failed.span.status.as_ref().map(Status::code), Some(StatusCode::Error), "{failed:?}");
        assert_eq!(failed.attribute("error.type"), Some(&any_value::Value::StringValue("invalid_input".into())), "{failed:?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_job_and_one_line() {
    let gone = Collector::start().await.endpoint().replace("http://127.0.0.1:", "http://127.0.0.2:");
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", gone.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let mut host = HostProcess::start(&settings, &[]).await;
    host.ready().await;
    for id in ["one", "two"] {
        host.post("/generate", &job(id)).await;
        assert_eq!(host.backend.terminal().await.body["job_id"], id);
    }
    host.terminate();
    host.ended().await;
    let lines = host.logged("spans cannot be exported, and are lost until they can be");
    assert!((1..=2).contains(&lines.len()), "one of the host, one of its handler: {lines:?}");
}
