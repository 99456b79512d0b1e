//! `atelier host`, from its parts to whole processes, against real servers.

mod batches;
mod bench;
mod client;
mod cloud;
mod conformance;
pub(crate) mod dead;
mod door;
mod ends;
mod failed;
mod http;
mod memory;
mod metrics;
mod models;
mod outage;
mod protocol;
pub(crate) mod rabbitmq;
mod refused;
mod settling;
mod sharing;
mod shelf;
pub(crate) mod sqs;
mod stored;
mod survival;
mod traces;
pub(crate) mod twins;
mod undelivered;
mod unready;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::process::World;

/// Longer than anything on a loaded machine; a test that waits this long has failed.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_mins(2);

/// A host process with its bucket, its backend and its spool; killed when dropped.
pub(crate) struct HostProcess {
    child: Child,
    pub(crate) bucket: Bucket,
    pub(crate) backend: Backend,
    directory: TempDir,
    changes: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl HostProcess {
    /// Starts a host whose environment is `changes` over the default one, with `arguments` after `atelier host`.
    pub(crate) async fn start(changes: &[(&str, &str)], arguments: &[&str]) -> Self {
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let directory = tempfile::tempdir().unwrap();
        for state in ["waiting", "running", "dead"] {
            std::fs::create_dir_all(directory.path().join("spool").join(state)).unwrap();
        }
        let changes: Vec<_> = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(&bucket, &backend, directory.path(), &changes, &arguments);
        Self { child, bucket, backend, directory, changes, arguments }
    }

    /// The files of results that wait on disk.
    pub(crate) fn held(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.directory.path().join("held")).into_iter().flatten();
        files.map(|entry| entry.unwrap().path()).collect()
    }

    /// From its next start on nothing can be written to its log, and there is nothing in it.
    pub(crate) fn fill_log(&self) {
        let log = self.directory.path().join("log");
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink("/dev/full", log).unwrap();
    }

    /// As somebody does who tidies up.
    pub(crate) fn delete_spool(&self) {
        std::fs::remove_dir_all(self.directory.path().join("spool")).unwrap();
    }

    /// What is different in its environment from its next start on.
    pub(crate) fn change(&mut self, name: &str, value: &str) {
        self.changes.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it again, over the same spool and bucket.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.bucket, &self.backend, self.directory.path(), &self.changes, &self.arguments);
    }

    pub(crate) fn log(&self) -> String {
        let log = self.directory.path().join("log");
        // A device never ends.
        if log.is_file() { std::fs::read_to_string(log).unwrap_or_default() } else { String::new() }
    }

    /// The lines of the log with this message.
    pub(crate) fn logged(&self, message: &str) -> Vec<Value> {
        let log = self.log();
        // A long campaign looks often, and into a long log: only what may be meant is read.
        let found = log.lines().filter(|line| line.contains(message)).filter_map(|line| serde_json::from_str(line).ok());
        found.filter(|line: &Value| line["message"] == message).collect()
    }

    /// Waits for line number `count` (from 1) with this message.
    pub(crate) async fn wait_for(&mut self, message: &str, count: usize) -> Value {
        let mut line = None;
        eventually(message, || {
            line = self.logged(message).into_iter().nth(count - 1);
            line.is_some()
        })
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", self.log()));
        line.unwrap()
    }

    /// A directory of the spool, and the jobs in it.
    pub(crate) fn spooled(&self, state: &str) -> Vec<PathBuf> {
        let directory = self.directory.path().join("spool").join(state);
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Puts a job into the spool as its format says, behind the back of a host that does not run.
    pub(crate) fn spool(&self, job_id: &str, body: &Value) {
        let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let name = format!("{now_ms:013}~{now_ms:013}~0~{job_id}-unique~{job_id}");
        std::fs::write(self.directory.path().join("spool/waiting").join(name), body.to_string()).unwrap();
    }

    /// SIGKILL: no destructor, no goodbye.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Where it listens for HTTP.
    pub(crate) fn address(&self) -> String {
        let line = self.logged("listening for HTTP").pop().expect("it listens");
        line["address"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.request(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> String {
        self.request(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn cancel(&self, job_id: &str) {
        self.request(Method::DELETE, &format!("/jobs/{job_id}"), None).await;
    }

    /// The answer to a wish to cancel, whatever it is.
    pub(crate) async fn try_cancel(&self, job_id: &str) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.delete(format!("http://{}/jobs/{job_id}", self.address()));
        let answer = request.header("x-internal-auth", crate::stage::TOKEN).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Waits until a handler is ready, whatever the log says of it.
    pub(crate) async fn ready(&self) {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            let address = self.logged("listening for HTTP").pop().map(|_| self.address());
            let asked = match address {
                Some(address) => reqwest::get(format!("http://{address}/test")).await.ok(),
                None => None,
            };
            if asked.is_some_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(Instant::now() < deadline, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The body of an answer that says yes.
    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> String {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.request(method, format!("http://{}{path}", self.address()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.header("x-internal-auth", crate::stage::TOKEN).send().await.unwrap();
        let is_success = answer.status().is_success();
        let text = answer.text().await.unwrap();
        assert!(is_success, "{path}: {text}");
        text
    }

    /// Waits until some of a job's denoising steps are done.
    pub(crate) async fn is_generating(&self, job_id: &str) {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            let job_status: Value = serde_json::from_str(&self.get(&format!("/jobs/{job_id}")).await).unwrap();
            let percent = job_status["progress"].as_u64().unwrap();
            if job_status["state"] == "running" && (1..90).contains(&percent) {
                return;
            }
            assert!(Instant::now() < deadline && job_status["state"] != "complete", "{job_status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn terminate(&self) {
        signal(Signal::TERM, self.child.id());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        let ended = eventually("the host ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        ended.await.unwrap_or_else(|timeout| panic!("{timeout}\n{}", self.log()));
        status.unwrap()
    }

    /// Process ids of the handlers that were started, in their order.
    pub(crate) fn handlers(&self) -> Vec<u32> {
        self.logged("a handler was started").iter().map(|line| u32::try_from(line["pid"].as_u64().unwrap()).unwrap()).collect()
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(bucket: &Bucket, backend: &Backend, directory: &Path, changes: &[(String, String)], arguments: &[String]) -> Child {
    let world = World { runtime_api: ([127, 0, 0, 1], 1).into(), s3: bucket.address, backend: backend.address };
    let own = ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION"].map(|name| (name, ""));
    let spool = directory.join("spool").display().to_string();
    let held = directory.join("held").display().to_string();
    let default_environment = [
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", ""),
        ("PATH", "/usr/bin:/bin"),
        ("ATELIER__SERVER__ADDRESS", "127.0.0.1"),
        ("ATELIER__SERVER__PORT", "0"),
        ("ATELIER__SOURCES__SPOOL__DIRECTORY", &spool),
        ("ATELIER__STORE__HELD_RESULTS__DIRECTORY", &held),
        ("ATELIER__HOST__INITIAL_BACKOFF_MS", "50"),
        ("ATELIER__HOST__HANDLER__INITIAL_BACKOFF_MS", "50"),
        ("ATELIER__HOST__HANDLER__KILL_GRACE_MS", "2000"),
    ];
    let changes: Vec<_> = changes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_atelier"))
        .arg("host")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .envs(world.environment(&[own.as_slice(), default_environment.as_slice(), &changes].concat()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

pub(crate) fn signal(signal: Signal, pid: u32) {
    let sent = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
    // It may have ended between the look and the kill.
    assert!(sent.is_ok() || !is_alive(pid), "{signal:?} to {pid}: {sent:?}");
}

/// Whether a process is there and not merely waiting to be buried.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Looks again and again until `seen` is true, for [`PATIENCE`] at most.
pub(crate) async fn eventually(what: &str, mut seen: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + WAIT_LIMIT;
    while !seen() {
        if Instant::now() > deadline {
            return Err(format!("not within {WAIT_LIMIT:?}: {what}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Lambda functions in Python, for what a handler of ours does not do on demand.
pub(crate) const PYTHON_FUNCTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions/greet.py");

/// The words after `atelier host` that run [`PYTHON_FUNCTION`], which does to itself what a job's prompt says.
pub(crate) fn python_function(what: &str) -> Option<Vec<String>> {
    let python = crate::servers::python_or_skip(what)?.join("bin/python").display().to_string();
    let functions = Path::new(PYTHON_FUNCTION).parent().unwrap().display().to_string();
    let start =
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from awslambdaric.__main__ import main; main([''] + sys.argv[1:])";
    Some(["--", &python, "-c", start, &functions, "greet.handler"].map(str::to_owned).to_vec())
}

/// A small job that the bundled model generates in a moment.
pub(crate) fn job(id: &str) -> Value {
    json!({ "job_id": id, "prompt": "a red mug on the beach", "steps": 2, "width": 64, "height": 64 })
}
