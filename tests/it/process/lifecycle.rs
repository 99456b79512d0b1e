//! A handler's life: it starts with a reason or not at all, keeps its deadlines, survives bad events, ends tidily.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::World;
use super::runtime_api::{Posted, RuntimeApi};
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::collector::Collector;
use crate::events::sample;

const LIMIT: Duration = Duration::from_mins(10);

struct Stage {
    api: RuntimeApi,
    bucket: Bucket,
    backend: Backend,
    world: World,
    log: PathBuf,
    _directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let api = RuntimeApi::start().await;
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
        let directory = tempfile::tempdir().unwrap();
        Self { api, bucket, backend, world, log: directory.path().join("log"), _directory: directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

fn job(id: &str, steps: u32) -> Value {
    let mut event = sample("sqs-plain.json");
    let body = json!({ "job_id": id, "prompt": "a red mug on the beach", "steps": steps, "num_images": 4 });
    event["Records"][0]["body"] = body.to_string().into();
    event
}

fn job_report() -> Posted {
    Posted::Response(json!({ "batchItemFailures": [] }))
}

fn handed_back() -> Posted {
    let message = sample("sqs-plain.json")["Records"][0]["messageId"].clone();
    Posted::Response(json!({ "batchItemFailures": [{ "itemIdentifier": message }] }))
}

#[tokio::test]
async fn a_missing_variable_is_named() {
    let stage = Stage::set().await;
    for name in ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] {
        let mut handler = stage.world.start(&[(name, "")], &stage.log);
        assert_eq!(handler.ended().await.code(), Some(1));
        assert!(stage.log().contains(&format!("the environment variable {name} is missing")), "{}", stage.log());
    }
    let mut handler = stage.world.start(&[("AWS_LAMBDA_RUNTIME_API", "")], &stage.log);
    assert_eq!(handler.ended().await.code(), Some(1));
    assert!(stage.log().contains("try `atelier demo`"), "{}", stage.log());
    assert!(!stage.log().contains("panicked"), "{}", stage.log());
}

#[tokio::test]
async fn a_failure_before_the_first_event_is_posted_with_its_cause() {
    let mut stage = Stage::set().await;
    let table = [
        ("ATELIER__MODEL__DIRECTORY", "no-such-directory", "Atelier.Configuration", "no-such-directory/tiny-sd.yaml"),
        ("ATELIER__STORE__BUCKET", "no-such-bucket", "Atelier.Storage", "no-such-bucket"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "Atelier.Storage", "atelier-demo"),
        ("ATELIER__ENGINE__DTYPE", "bf16", "Atelier.Model", "bf16, in which candle multiplies nothing on a CPU"),
        ("INTERNAL_API_TOKEN", "short-but-16-long", "Atelier.Configuration", "internal_api_token"),
    ];
    for (name, value, expected, words) in table {
        let mut handler = stage.world.start(&[(name, value)], &stage.log);
        let Posted::InitError { error_type, body } = stage.api.posted().await else { panic!("{name}: no init error") };
        assert_eq!(error_type, expected, "{name}: {body}");
        assert!(body["errorMessage"].as_str().unwrap_or_default().contains(words), "{name}: {body}");
        assert_eq!(handler.ended().await.code(), Some(1), "{name}");
    }
}

#[tokio::test]
async fn a_deadline_hands_the_job_back_and_the_next_one_is_generated() {
    let mut stage = Stage::set().await;
    let _handler = stage.world.start(&[("ATELIER__RUNTIME__DEADLINE_MARGIN_MS", "500")], &stage.log);
    stage.api.invoke(job("warm", 1), LIMIT);
    assert_eq!(stage.api.posted().await, job_report());
    stage.backend.terminal().await;

    let started = Instant::now();
    stage.api.invoke(job("endless", 200), Duration::from_millis(1500));
    assert_eq!(stage.api.posted().await, handed_back());
    assert!(started.elapsed() < Duration::from_millis(1500), "after the deadline: {:?}", started.elapsed());
    assert!(stage.log().contains("deadline_exceeded"), "{}", stage.log());

    // `cargo lambda watch` sends this constant: 1970 is no deadline.
    stage.api.invoke_with_deadline(job("undated", 1), 600_000);
    assert_eq!(stage.api.posted().await, job_report());
    assert_eq!(stage.backend.terminal().await.body["job_id"], "undated");
    assert_eq!(stage.bucket.puts("/result.json"), 2);
}

#[tokio::test]
async fn on_lambda_every_run_is_a_line_for_cloudwatch() {
    let mut stage = Stage::set().await;
    let _handler = stage.world.start(&[], &stage.log);
    stage.api.invoke(job("measured", 4), LIMIT);
    assert_eq!(stage.api.posted().await, job_report());
    let out = std::fs::read_to_string(stage.log.with_extension("out")).unwrap();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [line] = &lines[..] else { panic!("one run, one line: {out}") };
    assert_eq!(
        (&line["job_id"], &line["outcome"], &line["model"]),
        (&json!("measured"), &json!("complete"), &json!("tiny-sd"))
    );
    assert_eq!(line["atelier_denoising_steps_total"], 4.0);
    let names: Vec<&str> = line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| metric["Name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"vton_inference_latency_ms") && names.contains(&"atelier_step_seconds_store"), "{names:?}");
    assert!(names.iter().all(|name| line[*name].is_number()), "{line}");
}

/// Lambda freezes a process between two events, so its spans have to go first: here nothing else would send them for an hour.
#[tokio::test]
async fn on_lambda_spans_are_exported_before_the_next_event_is_asked_for() {
    let mut stage = Stage::set().await;
    let collector = Collector::start().await;
    let settings = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.endpoint()))];
    let settings = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain([("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("OTEL_SERVICE_NAME", "images")]);
    let _handler = stage.world.start(&settings.collect::<Vec<_>>(), &stage.log);
    let mut event = job("traced", 1);
    event["Records"][0]["attributes"]["AWSTraceHeader"] =
        json!("Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1");
    stage.api.invoke(event, LIMIT);
    assert_eq!(stage.api.posted().await, job_report());
    let exported = collector.until(|exported| exported.iter().any(|one| one.span.name == "job")).await;
    assert!(exported.iter().all(|one| one.service == "images" && one.span.trace_id.starts_with(&[0x4b, 0xf9])), "{exported:?}");
    let webhook = exported.iter().find(|one| one.span.name == "webhook").expect("its webhooks are sent here");
    assert!(exported.iter().any(|one| one.span.span_id == webhook.span.parent_span_id), "{webhook:?}");
}

/// Warm or not, the log says where the time until the first image went.
#[tokio::test]
async fn a_start_is_reported_by_phase_and_the_first_image_once() {
    for (warm_up, least_ms) in [("true", 1), ("false", 0)] {
        let mut stage = Stage::set().await;
        let _handler = stage.world.start(&[("ATELIER__WORKFLOW__ADVANCED__WARMUP_ON_STARTUP", warm_up)], &stage.log);
        for id in ["one", "two"] {
            stage.api.invoke(job(id, 2), LIMIT);
            assert_eq!(stage.api.posted().await, job_report());
        }
        let lines: Vec<Value> = stage.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let notified = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
        let ([ready], [first]) = (&notified("ready")[..], &notified("first image")[..]) else { panic!("{}", stage.log()) };
        let ms = |line: &Value, field: &str| line[field].as_u64().unwrap_or_else(|| panic!("{field}: {line}"));
        let parts: u64 = ["device_ms", "read_ms", "build_ms", "warm_up_ms"].map(|field| ms(ready, field)).iter().sum();
        assert!(ms(ready, "warm_up_ms") >= least_ms, "{ready}");
        assert!(parts <= ms(ready, "ready_ms") + 20, "the parts are of the whole, which is known to 10 ms: {ready}");
        assert!(ms(first, "first_image_ms") + 20 >= ms(ready, "ready_ms") + ms(first, "generate_ms"), "{ready} {first}");
    }
}

#[tokio::test]
async fn an_unknown_event_is_an_error_and_harms_nobody() {
    let mut stage = Stage::set().await;
    let _handler = stage.world.start(&[], &stage.log);
    stage.api.invoke(json!({ "detail-type": "Scheduled Event" }), LIMIT);
    let Posted::Error { error_type, body } = stage.api.posted().await else { panic!("no error") };
    assert_eq!(error_type, "Atelier.UnknownEvent");
    assert!(body["errorMessage"].as_str().unwrap_or_default().contains("an SQS batch"), "{body}");
    stage.api.invoke(job("after", 1), LIMIT);
    assert_eq!(stage.api.posted().await, job_report());
}

#[tokio::test]
async fn sigterm_ends_an_idle_handler_at_once() {
    let mut stage = Stage::set().await;
    let mut handler = stage.world.start(&[], &stage.log);
    stage.api.invoke(job("first", 1), LIMIT);
    assert_eq!(stage.api.posted().await, job_report());
    handler.terminate();
    assert_eq!(handler.ended().await.code(), Some(0), "{}", stage.log());
}

#[tokio::test]
async fn sigterm_finishes_the_job_within_the_grace() {
    let mut stage = Stage::set().await;
    stage.bucket.hold(Some("/0.png"));
    let mut handler = stage.world.start(&[], &stage.log);
    stage.api.invoke(job("in-hand", 1), LIMIT);
    stage.bucket.holding().await;
    handler.terminate();
    stage.bucket.hold(None);
    assert_eq!(stage.api.posted().await, job_report());
    assert_eq!(handler.ended().await.code(), Some(0), "{}", stage.log());
    assert_eq!(stage.backend.terminal().await.body["job_id"], "in-hand");
}

#[tokio::test]
async fn sigterm_hands_a_long_job_back() {
    let mut stage = Stage::set().await;
    let mut handler = stage.world.start(&[("ATELIER__RUNTIME__SHUTDOWN_GRACE_MS", "100")], &stage.log);
    stage.bucket.hold(Some("/0.png"));
    stage.api.invoke(job("too-long", 1), LIMIT);
    stage.bucket.holding().await;
    handler.terminate();
    assert_eq!(stage.api.posted().await, handed_back());
    assert_eq!(handler.ended().await.code(), Some(0), "{}", stage.log());
    assert!(stage.log().contains("shutting_down"), "{}", stage.log());
}
