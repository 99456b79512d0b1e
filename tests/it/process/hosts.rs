//! The built binary under the Runtime APIs that others run: `cargo lambda watch` and AWS's Runtime Interface Emulator.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::events::sample;
use crate::servers::{DEADLINE, python_or_skip};
use crate::stage::TOKEN;

/// `cargo lambda watch` may have to link the binary before it answers.
const WAIT_LIMIT: Duration = Duration::from_mins(5);

/// Someone's Runtime API host with a handler under it; both are ended when dropped.
struct Host {
    process: Child,
    port: u16,
    log: PathBuf,
    bucket: Bucket,
    backend: Backend,
    _directory: TempDir,
}

impl Host {
    /// Starts the program that `command` makes from a free port, in the environment of a handler.
    async fn start(command: impl FnOnce(u16) -> Command) -> Self {
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let port = free_port();
        let world = World { runtime_api: ([127, 0, 0, 1], port).into(), s3: bucket.address, backend: backend.address };
        // What the host has to set itself must not come from us.
        let own = ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION"].map(|name| (name, ""));
        let changes = [own.as_slice(), &[("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", ""), ("INTERNAL_API_TOKEN", TOKEN)]].concat();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let process = command(port)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(world.environment(&changes))
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut host = Self { process, port, log, bucket, backend, _directory: directory };
        let deadline = Instant::now() + WAIT_LIMIT;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(host.process.try_wait().unwrap().is_none() && Instant::now() < deadline, "{}", host.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        host
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let client = reqwest::Client::builder().no_proxy().timeout(WAIT_LIMIT).build().unwrap();
        let request = client.post(format!("http://127.0.0.1:{}{path}", self.port)).header("x-internal-auth", TOKEN);
        let reply = request.json(body).send().await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        let text = reply.text().await.unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{}", self.log()))
    }

    /// Sees a plain job through, and through again as a replay.
    async fn expect_generated_once(&mut self, replies: [Value; 2]) {
        let settled = json!({ "batchItemFailures": [] });
        assert_eq!(replies, [settled.clone(), settled], "{}", self.log());
        let first = self.backend.terminal().await;
        let second = self.backend.terminal().await;
        assert!(first.path.ends_with("/complete"), "{first:?}");
        assert_eq!((&first.webhook_id, &first.body["job_id"]), (&second.webhook_id, &second.body["job_id"]));
        assert_eq!((self.bucket.puts("/0.png"), self.bucket.puts("/result.json")), (1, 1));
    }
}

impl Drop for Host {
    /// SIGTERM makes a host end the handler, which is in a process group of its own; SIGKILL is for one that hangs.
    fn drop(&mut self) {
        let leader = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        let _ = kill_process(leader, Signal::TERM);
        let deadline = Instant::now() + DEADLINE;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(leader, Signal::KILL);
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `cargo lambda invoke`: what docs/run-locally.md has users type.
async fn invoke(program: &Path, port: u16, event: &'static str) -> Value {
    let mut command = Command::new(program);
    command.args(["lambda", "invoke", "-A", "127.0.0.1", "-P", &port.to_string(), "atelier", "--data-file"]);
    command.arg(Path::new("events").join(event)).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{event}: {error}: {output:?}"))
}

#[tokio::test]
async fn cargo_lambda_watches_and_invokes() {
    let Some(venv) = python_or_skip("the handler under `cargo lambda watch`") else { return };
    let program = venv.join("bin/cargo-lambda");
    let mut host = Host::start(|port| {
        let mut command = Command::new(&program);
        command.args(["lambda", "watch", "--ignore-changes", "-A", "127.0.0.1", "-P", &port.to_string()]);
        command
    })
    .await;
    let once = invoke(&program, host.port, "sqs-plain.json").await;
    let again = invoke(&program, host.port, "sqs-plain.json").await;
    host.expect_generated_once([once, again]).await;

    let mixed = invoke(&program, host.port, "sqs-mixed.json").await;
    // No one can be notified of what is not JSON: the redrive policy keeps it. What names its job was reported and does not come back.
    let kept = json!({ "batchItemFailures": [{ "itemIdentifier": "7b1f3c1e-3a3b-4f0e-8f5f-1d1f0f6f5a11" }] });
    assert_eq!(mixed, kept, "{}", host.log());
    let reply = invoke(&program, host.port, "http-alb.json").await;
    assert_eq!(reply["statusCode"], 200, "{reply}");
    let reply =
        host.post("/lambda-url/atelier/generate", &json!({ "job_id": "by-url", "prompt": "a red mug", "steps": 2 })).await;
    assert_eq!(reply["job_id"], "by-url", "{reply}");
}

#[tokio::test]
async fn the_runtime_interface_emulator_invokes() {
    let Some(venv) = python_or_skip("the handler under AWS's Runtime Interface Emulator") else { return };
    let mut host = Host::start(|port| {
        let mut command = Command::new(venv.join("bin/aws-lambda-rie"));
        command.args(["--runtime-interface-emulator-address", &format!("127.0.0.1:{port}")]);
        command.args(["--runtime-api-address", &format!("127.0.0.1:{}", free_port())]);
        command.arg(env!("CARGO_BIN_EXE_atelier"));
        command
    })
    .await;
    let path = "/2015-03-31/functions/function/invocations";
    let once = host.post(path, &sample("sqs-plain.json")).await;
    let again = host.post(path, &sample("sqs-plain.json")).await;
    host.expect_generated_once([once, again]).await;
}
