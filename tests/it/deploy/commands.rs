//! Blocks of commands of docs/, run as they stand: this build in place of `cargo run`, other ports.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::file;
use crate::servers::{packages, python_or_skip};

const WAIT_LIMIT: Duration = Duration::from_mins(2);

/// The block of shell commands of a page with these words in it.
pub(super) fn block(page: &str, words: &str) -> String {
    let text = file(page);
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks
        .filter(|block| block.contains(words))
        .map(str::to_owned)
        .next()
        .unwrap_or_else(|| panic!("no block of {page} has {words}"))
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A directory like the repository's root, for what the commands leave.
fn root() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["models", "events"] {
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), directory.path().join(name)).unwrap();
    }
    directory
}

/// `cargo run -- ...` in `script` is this build.
fn shell(script: &str, directory: &Path) -> Command {
    let mut command = Command::new("bash");
    let cargo = format!("cargo() {{ shift 2; exec '{}' \"$@\"; }}", env!("CARGO_BIN_EXE_atelier"));
    command.args(["-ec", &format!("{cargo}\n{script}")]).current_dir(directory).stdin(Stdio::null());
    command
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `atelier demo --serve` and waits for the exports that it prints.
fn served(line: &str, directory: &Path) -> (Running, String) {
    let (demo, said, _) = said_until(line, "SIGNING_SECRET", directory);
    let exports = said.lines().map(str::trim).filter(|line| line.starts_with("export "));
    (demo, exports.flat_map(|line| [line, "\n"]).collect())
}

/// Starts a command and waits until it says `last`; returns what it has said by then. What it says later is read away.
fn said_until(line: &str, last: &str, directory: &Path) -> (Running, String, Receiver<String>) {
    let mut running = Running(shell(line, directory).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = String::new();
    for line in lines.by_ref() {
        said.extend([line.as_str(), "\n"]);
        if line.contains(last) {
            let (sender, later) = channel();
            // Read to its end whether anybody wants it or not: a full pipe would stop the program.
            std::thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
            return (running, said, later);
        }
    }
    panic!("it did not say {last:?}: {said}");
}

#[tokio::test]
async fn the_documented_host_serves_the_documented_callers() {
    if !packages::are_there("the documented callers", &[packages::path("usr/bin/curl")]) {
        return;
    }
    let directory = root();
    let port = free_port();
    let servers = block("docs/run-locally.md", "demo --serve --no-host    # shell 1");
    let (first, second) = servers.split_once('\n').unwrap();
    let path = directory.path().to_owned();
    let line = first.to_owned();
    let (_demo, exports) = spawn_blocking(move || served(&line, &path)).await.unwrap();
    let port_line = format!("export ATELIER__SERVER__PORT={port}\n");
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    let host = shell(&format!("{exports}{port_line}{second}"), directory.path()).stderr(log).stdout(Stdio::null()).spawn();
    let _host = Running(host.unwrap());
    let deadline = Instant::now() + WAIT_LIMIT;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    while !client.get(format!("http://127.0.0.1:{port}/test")).send().await.is_ok_and(|answer| answer.status() == 200) {
        assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(directory.path().join("log")).unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let calls =
        block("docs/run-locally.md", "curl -s localhost:8080/test").replace("localhost:8080", &format!("127.0.0.1:{port}"));
    let mut calling = shell(&format!("{exports}{calls}"), directory.path());
    calling.envs(packages::variables());
    let output = spawn_blocking(move || calling.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(r#""status":"hot""#), "{output:?}");
    assert!(said.matches("later").count() >= 2, "taken, then asked for: {said}");
    let image = image::open(directory.path().join("now.png")).unwrap();
    assert_eq!((image.width(), image.height()), (128, 128));
}

/// What the README's shell 1 prints where other programs have the ports that it would like.
#[test]
fn a_demo_that_stays_up_takes_free_ports_where_others_are_taken() {
    // Another process that has one of them takes it as well.
    let _taken = [9444, 9445].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let directory = tempfile::tempdir().unwrap();
    let (_demo, exports) = served("cargo run -- demo --serve", directory.path());
    for name in ["ATELIER__STORE__ENDPOINT_URL", "BACKEND_API_URL"] {
        let line = exports.lines().find(|line| line.contains(name)).unwrap();
        let address = line.rsplit_once("http://").unwrap().1;
        assert!(!line.contains(":9444") && !line.contains(":9445"), "{line}");
        assert!(std::net::TcpStream::connect(address).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn the_readmes_page_opens_and_takes_a_try_on() {
    let directory = root();
    let line = block("README.md", "demo --serve");
    let path = directory.path().to_owned();
    let saying = spawn_blocking(move || said_until(&line, "the page to try it yourself", &path));
    let (_demo, said, later) = saying.await.unwrap();
    let address = said.rsplit_once("the page to try it yourself: ").unwrap().1.trim();
    let (page, token) = address.split_once("/#token=").unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let html = client.get(page).send().await.unwrap().text().await.unwrap();
    assert!(html.contains("<title>atelier</title>"), "{html}");
    let image = |name: &str| {
        let file = std::fs::read(directory.path().join("events/images").join(name)).unwrap();
        format!("data:image/png;base64,{}", STANDARD.encode(file))
    };
    let body = json!({ "job_id": "first", "person": image("person.png"), "garments": [image("garment.png")] });
    let answer = client.post(format!("{page}/tryon")).bearer_auth(token).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
    let follow = client.get(format!("{page}/jobs/first/events")).bearer_auth(token).timeout(WAIT_LIMIT);
    let events = follow.send().await.unwrap().text().await.unwrap();
    assert!(events.contains("event: complete"), "{events}");
    let image = client.get(format!("{page}/jobs/first/images/0")).bearer_auth(token).send().await.unwrap();
    let image = image::load_from_memory(&image.bytes().await.unwrap()).unwrap();
    assert_eq!((image.width(), image.height()), (96, 128));
    // Webhooks are shown while it serves as well.
    let told = spawn_blocking(move || later.iter().find(|line| line.contains("inference/complete  first")));
    let told = timeout(WAIT_LIMIT, told).await.unwrap().unwrap();
    assert!(told.as_ref().is_some_and(|line| line.starts_with("  webhook POST /api/webhooks/")), "{told:?}");
}

#[tokio::test]
async fn the_documented_queue_is_one_that_doctor_finds() {
    let Some(venv) = python_or_skip("the queue of docs/queues.md in moto") else { return };
    let directory = root();
    let port = free_port();
    // The virtual environment has it already.
    let commands =
        block("docs/queues.md", "moto_server").replace("pip install 'moto[server]' && ", "").replace("5000", &port.to_string());
    let (server, queue) = commands.split_once('\n').unwrap();
    let listens = format!("until (: > /dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.05; done");
    let script = format!("{server}\ntrap 'kill -9 %1' EXIT\n{listens}\n{queue}\n(cargo run -- doctor --json) || true");
    let path = format!("{}:{}", venv.join("bin").display(), "/usr/local/bin:/usr/bin:/bin");
    let mut command = shell(&script, directory.path());
    command.env("PATH", path).env("AWS_EC2_METADATA_DISABLED", "true").stderr(Stdio::null());
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let sqs = findings.iter().find(|finding| finding["check"] == "sqs").unwrap();
    assert_eq!(sqs["state"], "warn", "{sqs}");
    assert!(sqs["found"].as_str().unwrap().contains("no redrive policy"), "{sqs}");
}
