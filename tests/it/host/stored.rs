//! What the host of commit 354b586 stored is carried on by this one: its spool, and what its `Idempotency-Key`s stand for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use super::{HostProcess, eventually, job};

/// All files below a directory of what was stored.
fn stored(directory: &str) -> Vec<PathBuf> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored").join(directory)];
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Where a file of what was stored lies in its `directory`.
fn inside(file: &Path, directory: &str) -> String {
    file.to_str().unwrap().split_once(&format!("tests/fixtures/stored/{directory}/")).unwrap().1.to_owned()
}

/// A host with what an earlier one left in its spool and bucket.
async fn successor() -> HostProcess {
    let mut host = HostProcess::start(&[], &[]).await;
    host.kill();
    for file in stored("spool") {
        fs::copy(&file, host.directory.path().join("spool").join(inside(&file, "spool"))).unwrap();
    }
    for file in stored("bucket") {
        let object = host.bucket.path(&inside(&file, "bucket"));
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        fs::copy(&file, object).unwrap();
    }
    host.restart();
    host
}

#[tokio::test]
async fn a_spool_of_an_earlier_build_is_run_to_its_end() {
    let mut host = successor().await;
    // One waited for its first attempt, one for its second, and one was running when the host was killed.
    let mut complete = BTreeSet::new();
    for _ in 0..3 {
        let terminal = host.backend.terminal().await;
        assert_eq!(terminal.path, "/api/webhooks/inference/complete", "{}", terminal.body);
        complete.insert(terminal.body["job_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(complete, ["stored-retry", "stored-running", "stored-waiting"].map(str::to_owned).into());
    let in_flight = host.wait_for("a job was in flight when the host died; it is tried again", 1).await;
    assert_eq!((&in_flight["job_id"], &in_flight["attempt"]), (&json!("stored-running"), &json!(1)), "{in_flight}");
    eventually("the spool is empty", || ["waiting", "running", "dead"].iter().all(|state| host.spooled(state).is_empty()))
        .await
        .unwrap();
}

async fn send(host: &HostProcess, body: &Value) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("http://{}/generate", host.address())).json(body);
    let request = request.header("x-internal-auth", crate::stage::TOKEN).header("idempotency-key", "stored-key");
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_key_of_an_earlier_build_is_answered_with_its_result() {
    let host = successor().await;
    host.ready().await;
    let replay = send(&host, &job("stored-idempotent")).await;
    assert_eq!((replay.status(), &replay.headers()["idempotent-replayed"]), (StatusCode::OK, &"true".parse().unwrap()));
    let replay: Value = replay.json().await.unwrap();
    let image = &replay["result"]["images"][0];
    assert_eq!(image["key"], "generations/stored-idempotent/0.png", "{replay}");
    let url = image["url"].as_str().unwrap();
    let shown = reqwest::get(url).await.unwrap().bytes().await.unwrap();
    let [png] = &stored("bucket").into_iter().filter(|file| file.ends_with("0.png")).collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(shown, fs::read(png).unwrap());
    assert_eq!(host.bucket.puts("stored-idempotent/result.json"), 0, "nothing is generated again");
    let other = send(&host, &job("another")).await;
    assert_eq!(other.status(), StatusCode::CONFLICT);
    assert!(other.text().await.unwrap().contains("(job_id stored-idempotent)"));
}
