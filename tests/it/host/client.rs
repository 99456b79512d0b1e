//! `atelier submit` and `atelier jobs` against a real host.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::spawn_blocking;

use super::sqs::Bench;
use super::{HostProcess, job};
use crate::stage::TOKEN;

/// Runs a command beside a host, with its token.
async fn atelier(arguments: &[&str]) -> Output {
    atelier_with(arguments, &[("INTERNAL_API_TOKEN", TOKEN)]).await
}

async fn atelier_with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).env_clear().envs(environment.iter().copied());
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn write(directory: &Path, job: &Value) -> String {
    let file = directory.join("job.json");
    std::fs::write(&file, job.to_string()).unwrap();
    file.display().to_string()
}

async fn started() -> (HostProcess, String, TempDir) {
    let host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    let at = format!("http://{}", host.address());
    (host, at, tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn a_job_is_handed_in_followed_and_its_image_brought() {
    let (host, at, directory) = started().await;
    let file = write(directory.path(), &job("job-1"));
    let out = directory.path().join("out").display().to_string();
    let (code, lines, errors) = said(&atelier(&["submit", &file, "--to", &at, "--out", &out]).await);
    assert_eq!(code, Some(0), "{lines}{errors}");
    assert!(lines.starts_with("job-1 the job is in the queue\n"), "{lines}");
    assert!(lines.contains("job-1 complete\n"), "{lines}");
    let image = format!("{out}/job-1-0.png");
    assert!(lines.ends_with(&format!("job-1 {image}\n")), "{lines}");
    let image = image::open(image).unwrap();
    assert_eq!((image.width(), image.height()), (64, 64));
    // What is known of it afterwards.
    let (code, document, _) = said(&atelier(&["jobs", "show", "job-1", "--at", &at]).await);
    assert_eq!(code, Some(0));
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["state"], &document["step"], &document["steps"]), (&json!("complete"), &json!(2), &json!(2)));
    let (_, list, _) = said(&atelier(&["jobs", "list", "--at", &at]).await);
    assert_eq!(list, "job-1 complete attempt 1 100%\n");
    // The end is known to who asks later, and to another host by the record.
    let (code, lines, _) = said(&atelier(&["jobs", "follow", "job-1", "--at", &at]).await);
    assert_eq!((code, lines.as_str()), (Some(0), "job-1 complete\n"));
    drop(host);
}

#[tokio::test]
async fn a_job_that_is_followed_is_followed_over_a_restart_of_the_host() {
    let (mut host, at, directory) = started().await;
    let mut long = job("job-1");
    long["steps"] = json!(150);
    let file = write(directory.path(), &long);
    let port = at.rsplit(':').next().unwrap().to_owned();
    let following = {
        let at = at.clone();
        tokio::spawn(async move { atelier(&["submit", &file, "--to", &at, "--follow"]).await })
    };
    host.wait_for("a handler was started", 1).await;
    while !host.get("/jobs").await.contains("\"running\"") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    host.is_generating("job-1").await;
    host.kill();
    host.change("ATELIER__SERVER__PORT", &port);
    host.restart();
    let (code, lines, errors) = said(&following.await.unwrap());
    assert_eq!(code, Some(0), "{lines}{errors}");
    assert!(lines.ends_with("job-1 complete\n"), "{lines}");
    assert!(lines.contains("job-1 step "), "{lines}");
}

#[tokio::test]
async fn who_waits_hears_how_many_come_before() {
    let (host, at, _directory) = started().await;
    let mut long = job("job-1");
    long["steps"] = json!(150);
    host.post("/generate", &long).await;
    host.is_generating("job-1").await;
    for id in ["job-2", "job-3"] {
        host.post("/generate", &job(id)).await;
    }
    for (id, position) in [("job-1", Value::Null), ("job-2", json!(0)), ("job-3", json!(1))] {
        let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
        assert_eq!(document["position"], position, "{document}");
    }
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["jobs", "follow", "job-3", "--at", &at]).env_clear().env("INTERNAL_API_TOKEN", TOKEN).kill_on_drop(true);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("job-3 accepted, 1 before it"));
    host.cancel("job-1").await;
    let mut rest = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest.push(line);
    }
    assert_eq!(rest.first().map(String::as_str), Some("job-3 accepted, 0 before it"), "{rest:?}");
    assert_eq!(rest.last().map(String::as_str), Some("job-3 complete"), "{rest:?}");
    assert!(follower.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_waits_comes_before_no_other() {
    let host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    let mut long = job("job-1");
    long["steps"] = json!(150);
    host.post("/generate", &long).await;
    host.is_generating("job-1").await;
    for id in ["job-2", "job-3", "job-4"] {
        host.post("/generate", &job(id)).await;
    }
    let position = async |id: &str| -> Value {
        let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
        document["position"].clone()
    };
    assert_eq!([position("job-3").await, position("job-4").await], [json!(1), json!(2)]);
    host.cancel("job-2").await;
    assert_eq!([position("job-3").await, position("job-4").await], [json!(0), json!(1)]);
    // Handed in again the wish to cancel is taken back.
    host.post("/generate", &job("job-2")).await;
    assert_eq!(position("job-3").await, json!(1));
}

/// A preview is a file as long as there is nothing better to see.
#[tokio::test]
async fn who_follows_into_a_directory_sees_what_the_image_looks_like_so_far() {
    let (_host, at, directory) = started().await;
    let mut long = job("job-1");
    long["steps"] = json!(150);
    let file = write(directory.path(), &long);
    let out = directory.path().join("out");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["submit", &file, "--to", &at, "--out"]).arg(&out).env_clear().env("INTERNAL_API_TOKEN", TOKEN);
    let mut follower = command.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let preview = out.join("job-1-preview.jpg");
    let mut seen = 0;
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.starts_with("job-1 preview of step ") {
            assert!(line.ends_with(&format!(" of 150: {}", preview.display())), "{line}");
            // It may be gone by now, and is never half a file.
            if let Ok(image) = std::fs::read(&preview) {
                let image = image::load_from_memory(&image).unwrap();
                assert!(image.width() < 64 && image.width() == image.height(), "{}", image.width());
                seen += 1;
            }
        }
        last = line;
    }
    assert!(follower.wait().await.unwrap().success(), "{last}");
    assert!(seen > 0, "no preview came");
    let mut files: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["job-1-0.png"], "the image takes the place of its previews");
    // Another host's client may follow what somebody else has handed in.
    let again = directory.path().join("again").display().to_string();
    let (code, lines, errors) = said(&atelier(&["jobs", "follow", "job-1", "--at", &at, "--out", &again]).await);
    assert_eq!((code, lines), (Some(0), format!("job-1 complete\njob-1 {again}/job-1-0.png\n")), "{errors}");
}

#[tokio::test]
async fn what_goes_wrong_is_said_in_words() {
    let (host, at, directory) = started().await;
    let mut wrong = job("job-1");
    wrong["steps"] = json!(0);
    let file = write(directory.path(), &wrong);
    let (code, _, errors) = said(&atelier(&["submit", &file, "--to", &at]).await);
    assert_eq!(code, Some(1));
    assert!(errors.contains("the host answered 400 Bad Request: steps: must be"), "{errors}");
    let nobody = ["submit", file.as_str(), "--to", "http://127.0.0.1:9"];
    assert!(said(&atelier(&nobody).await).2.contains("http://127.0.0.1:9/ does not answer"));
    let (_, _, errors) = said(&atelier_with(&["jobs", "list", "--at", &at], &[]).await);
    assert!(errors.contains("401") && errors.contains("INTERNAL_API_TOKEN"), "{errors}");
    let (_, _, errors) = said(&atelier(&["jobs", "follow", "nobody", "--at", &at]).await);
    assert!(errors.contains("404") && errors.contains("nobody"), "{errors}");
    for (arguments, says) in [
        (["jobs", "show", "a/b", "--at", &at], "\"a/b\" is no job id"),
        (["submit", &file, "--follow", "--to", "sqs"], "--follow and --out need a host"),
        (["submit", "/nowhere.json", "--follow", "--to", &at], "/nowhere.json cannot be read"),
    ] {
        let (code, _, errors) = said(&atelier(&arguments).await);
        assert!(code != Some(0) && errors.contains(says), "{errors}");
    }
    let (_, _, errors) = said(&atelier(&["jobs", "list", "--at", "127.0.0.1:8080"]).await);
    assert!(errors.contains("is no address of a host"), "{errors}");
    // A job that fails is a command that fails.
    let mut fails = job("job-2");
    fails["lora"] = json!([{ "url": "s3://images/nowhere.safetensors" }]);
    let file = write(directory.path(), &fails);
    let (code, lines, errors) = said(&atelier(&["submit", &file, "--to", &at, "--follow"]).await);
    assert_eq!(code, Some(1), "{lines}");
    assert!(lines.contains("job-2 failed: ") && errors.contains("job-2 has not been completed"), "{lines}{errors}");
    // And one that is cancelled while it waits or runs.
    let mut long = job("job-3");
    long["steps"] = json!(150);
    let file = write(directory.path(), &long);
    assert_eq!(said(&atelier(&["submit", &file, "--to", &at]).await).0, Some(0));
    let (code, lines, errors) = said(&atelier(&["jobs", "cancel", "job-3", "--at", &at]).await);
    assert_eq!(code, Some(0), "{errors}");
    assert!(lines.starts_with("job-3 "), "{lines}");
    let (code, lines, _) = said(&atelier(&["jobs", "follow", "job-3", "--at", &at]).await);
    assert_eq!(code, Some(1));
    assert!(lines.contains("job-3 cancelled"), "{lines}");
    drop(host);
}

#[tokio::test]
async fn a_job_may_go_into_the_queue_itself() {
    let Some(bench) = Bench::start("a job submitted to SQS").await else { return };
    let url = bench.queue("submitted", &[]).await;
    let mut host = HostProcess::start(&[("SQS_QUEUE_URL", &url)], &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(directory.path(), &job("job-1"));
    let keys = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("SQS_QUEUE_URL", url.as_str())];
    let (code, lines, errors) = said(&atelier_with(&["submit", &file, "--to", "sqs"], &keys).await);
    assert_eq!((code, lines.as_str()), (Some(0), "job-1 the job is in the queue\n"), "{errors}");
    assert_eq!(host.backend.terminal().await.body["job_id"], "job-1");
    let nameless = write(directory.path(), &json!({ "prompt": "a mug" }));
    let (_, _, errors) = said(&atelier_with(&["submit", &nameless, "--to", "sqs"], &keys).await);
    assert!(errors.contains("job_id is required"), "{errors}");
}
