//! A handler under a host: it is cancelled on standard input, ends with its host, and ends with its GPU.

use std::process::{Command, ExitStatus, Stdio};

use atelier::handler::lambda::{self, End, Limits};
use atelier::protocol::ENGINE_LOST_EXIT_CODE;
use atelier::protocol::reply::{JobOutcome, JobReport};
use atelier_engine::EngineError;
use axum::http::Method;
use serde_json::{Value, json};

use super::World;
use super::runtime_api::{Posted, RuntimeApi};
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::events::sample;
use crate::servers::{DEADLINE, environment};
use crate::stage::Stage;

fn job(id: &str, steps: u32) -> Value {
    let mut event = sample("sqs-plain.json");
    let body = json!({ "job_id": id, "prompt": "a red mug on the beach", "steps": steps, "num_images": 4 });
    event["Records"][0]["body"] = body.to_string().into();
    event
}

fn only_job(posted: &Posted) -> JobReport {
    let Posted::Response(reply) = posted else { panic!("no reply: {posted:?}") };
    serde_json::from_value(reply["jobs"][0].clone()).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

#[tokio::test]
async fn a_running_job_is_cancelled_by_a_line_and_the_next_one_is_generated() {
    let mut api = RuntimeApi::start().await;
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let mut handler = world.start_controlled(&[], &directory.path().join("log"));

    api.invoke_for_host(job("endless", 200));
    let first = backend.next().await;
    assert_eq!(first.body["job_id"], "endless");
    handler.order("cancel another");
    handler.order("cancel endless");
    let cancelled = only_job(&api.posted().await);
    assert_eq!((cancelled.outcome, cancelled.notifications.len()), (JobOutcome::Failed, 1));
    assert_eq!(cancelled.error.map(|error| error.code).as_deref(), Some("cancelled"));

    api.invoke_for_host(job("next", 1));
    assert_eq!(only_job(&api.posted().await).outcome, JobOutcome::Complete);
    assert_eq!(bucket.puts("/result.json"), 1);
    assert!(
        backend.arrived().iter().all(|notification| notification.method == Method::PATCH),
        "terminal notifications are the host's"
    );
}

#[tokio::test]
async fn a_handler_ends_when_its_host_is_gone() {
    let mut api = RuntimeApi::start().await;
    let bucket = Bucket::start().await;
    let backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut handler = world.start_controlled(&[], &log);
    api.invoke(job("first", 1), DEADLINE);
    api.posted().await;
    handler.hang_up();
    assert_eq!(handler.ended().await.code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap());

    let mut misled = world.start(&[("ATELIER_CONTROL", "socket")], &log);
    assert_eq!(misled.ended().await.code(), Some(1));
    assert!(std::fs::read_to_string(&log).unwrap().contains("ATELIER_CONTROL must be `stdio`"));
    let mut older = world.start(&[("ATELIER_CONTROL", "stdio"), ("ATELIER_PROTOCOL", "7")], &log);
    assert_eq!(older.ended().await.code(), Some(1));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("speaks version 7 of")
            && said.contains(&format!("this handler speaks version {}", atelier::protocol::VERSION)),
        "{said}"
    );
}

/// This test is its own handler: no GPU breaks on demand, so the function that serves has a scripted engine, in a process of
/// its own, because `lambda_runtime` finds its server in the environment.
#[tokio::test]
async fn a_handler_whose_gpu_failed_answers_and_ends_with_its_own_code() {
    if environment("AWS_LAMBDA_RUNTIME_API").is_some() {
        be_a_handler_whose_gpu_fails().await;
    }
    let mut api = RuntimeApi::start().await;
    let mut handler = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::controlled::a_handler_whose_gpu_failed_answers_and_ends_with_its_own_code", "--nocapture"])
        .env("AWS_LAMBDA_RUNTIME_API", api.address.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "atelier")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for id in ["poison", "not-taken"] {
        let mut event = job(id, 1);
        event["Records"][0]["body"] = json!({ "job_id": id, "prompt": "a", "width": 64, "height": 64 }).to_string().into();
        api.invoke_for_host(event);
    }
    let handed_back = only_job(&api.posted().await);
    assert_eq!((handed_back.job_id.as_deref(), handed_back.outcome), (Some("poison"), JobOutcome::Retry));
    assert_eq!(handed_back.error.map(|error| error.code).as_deref(), Some("gpu_failed"));
    let ended: ExitStatus = tokio::task::spawn_blocking(move || handler.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(i32::from(ENGINE_LOST_EXIT_CODE)));
    assert!(api.nothing_posted(), "no further event was taken");
}

async fn be_a_handler_whose_gpu_fails() -> ! {
    let stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Fatal { problem: "CUDA_ERROR_LAUNCH_FAILED".into() }));
    let limits = Limits { deadline_margin: DEADLINE, shutdown_grace: DEADLINE };
    let end = lambda::serve(stage.handler, limits, None, None).await;
    std::process::exit(if matches!(end, Ok(End::FatalDeviceError)) { i32::from(ENGINE_LOST_EXIT_CODE) } else { 1 })
}
