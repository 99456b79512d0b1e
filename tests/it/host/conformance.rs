//! Functions that others wrote, unmodified, under our Runtime API: one of AWS's Rust crates, one in Python.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use atelier::host::answer::{Answer, reply_value};
use atelier::host::process::{Launcher, Process, Program};
use atelier::host::runtime_api::{Invocation, RuntimeApi, Started};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{HostProcess, WAIT_LIMIT, job, python_function};

/// A function under a Runtime API of ours.
struct Function {
    api: RuntimeApi,
    process: Process,
}

impl Function {
    async fn start(path: PathBuf, arguments: &[&str]) -> Self {
        let api = RuntimeApi::start("greeter").await.unwrap();
        let arguments = arguments.iter().map(OsString::from).collect();
        let program = Program {
            path: path.into(),
            arguments,
            function_name: "greeter".into(),
            memory_mib: 512,
            environment: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        };
        let launcher = Launcher::start().unwrap();
        let process = launcher.launch(&program, api.address, None, Arc::new(|_| ())).await.unwrap();
        assert_eq!(timeout(WAIT_LIMIT, api.started()).await.expect("it asks for an event"), Started::Ready);
        Self { api, process }
    }

    async fn answer(&self, event: Value) -> Answer {
        let limit = Duration::from_mins(1);
        let answer = self.api.invoke(Invocation { event, limit, client_context: None, trace_id: None });
        timeout(WAIT_LIMIT, answer).await.expect("an answer in time").expect("an answer")
    }

    async fn reply(&self, event: Value) -> Value {
        match self.answer(event).await {
            Answer::Reply { body, http_stream } => reply_value(&body, http_stream),
            Answer::Error(error) => panic!("{error}"),
        }
    }

    async fn end(mut self) {
        self.process.terminate();
        timeout(WAIT_LIMIT, self.process.ended()).await.expect("SIGTERM ends it");
    }
}

/// The path and all built libraries of the packages in this build: `cargo build` would compile them anew, without the features that
/// tests need.
fn artifacts() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--lib", "--no-run", "--offline", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Compiles the example out of the README of `lambda_runtime`, as the package registry has it.
fn build_example(directory: &Path) -> PathBuf {
    let artifacts = artifacts();
    let artifact = |name: &str| artifacts.iter().find(|artifact| artifact["target"]["name"] == name).expect(name);
    let manifest = PathBuf::from(artifact("lambda_runtime")["manifest_path"].as_str().unwrap());
    let readme = fs::read_to_string(manifest.with_file_name("README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let example = blocks.filter_map(|block| block.strip_prefix("rust,no_run\n")).find(|code| code.contains("fn main()"));
    let source = directory.join("example.rs");
    fs::write(&source, example.expect("an example with a main function")).unwrap();
    let mut rustc = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"));
    rustc.args(["--edition", "2021", "-o"]).arg(directory.join("example")).arg(&source);
    let library = |name: &str| {
        let files = artifact(name)["filenames"].as_array().unwrap().iter();
        files
            .filter_map(Value::as_str)
            .find(|file| Path::new(file).extension().is_some_and(|extension| extension == "rlib"))
            .expect("a library")
            .to_owned()
    };
    for name in ["lambda_runtime", "serde_json", "tokio"] {
        rustc.arg("--extern").arg(format!("{name}={}", library(name)));
    }
    rustc.arg("-L").arg(format!("dependency={}", Path::new(&library("tokio")).parent().unwrap().display()));
    let output = rustc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory.join("example")
}

#[tokio::test]
async fn the_example_of_aws_rust_runtime_runs() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_owned();
    let example = tokio::task::spawn_blocking(move || build_example(&place)).await.unwrap();
    let function = Function::start(example, &[]).await;
    assert_eq!(function.reply(json!({ "firstName": "Ada" })).await, json!({ "message": "Hello, Ada!" }));
    assert_eq!(function.reply(json!({})).await, json!({ "message": "Hello, world!" }));
    function.end().await;
}

#[tokio::test]
async fn a_python_function_runs() {
    let Some(words) = python_function("a Python function under our Runtime API") else { return };
    let arguments: Vec<&str> = words[2..].iter().map(String::as_str).collect();
    let function = Function::start(PathBuf::from(&words[1]), &arguments).await;
    let reply = function.reply(json!({ "firstName": "Ada" })).await;
    assert_eq!(reply["message"], "Hello, Ada!");
    assert_eq!(reply["function"], "greeter");
    assert_eq!(reply["arn"], "arn:aws:lambda:local:000000000000:function:greeter");
    let remaining_ms = reply["remaining_ms"].as_u64().unwrap();
    assert!((30_000..=60_000).contains(&remaining_ms), "{remaining_ms} ms of a minute");
    let failing = function.answer(json!({ "Records": [{ "body": "raise" }] })).await;
    let Answer::Error(error) = failing else { panic!("{failing:?}") };
    assert_eq!((error.error_type.as_str(), error.message.as_str()), ("ValueError", "this function was told to fail"));
    assert_eq!(function.reply(json!({})).await["message"], "Hello, world!", "it goes on after an error");
    function.end().await;
}

#[tokio::test]
async fn a_host_needs_no_manifest_for_another_function_and_hands_on_its_answer() {
    let Some(words) = python_function("a Python function behind /infer") else { return };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut host = HostProcess::start(&[("ATELIER_MODEL", "no-such-model")], &words).await;
    host.wait_for("a handler is ready", 1).await;
    let answer: serde_json::Value = serde_json::from_str(&host.post("/infer", &job("job-1")).await).unwrap();
    assert_eq!((&answer["message"], &answer["function"]), (&"Hello, world!".into(), &"atelier".into()));
    let metrics = host.get("/metrics").await;
    assert!(metrics.contains("atelier_jobs_total{outcome=\"complete\",source=\"infer\"} 1"), "{metrics}");
}
