//! Prompt lists, consent, and what becomes of a job that is not allowed.

use std::path::PathBuf;

use atelier::config::{Config, Environment};
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::protocol::reply::JobOutcome;
use atelier::safety::settings::{Settings, TryOnSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{body, images_put, object, run};
use crate::stage::Stage;

/// A list in a file; both live as long as the directory.
fn list(yaml: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list.yaml");
    std::fs::write(&path, yaml).unwrap();
    (directory, path)
}

fn lists(paths: Vec<PathBuf>) -> impl FnOnce(Settings) -> Settings {
    |settings| Settings { prompt_lists: paths, ..settings }
}

/// An edit of a red square.
async fn editing(gated: impl FnOnce(Settings) -> Settings) -> Stage {
    let stage = Stage::gated(Capabilities::Edit(vec![Mode::Fp8]), gated).await;
    std::fs::create_dir_all(stage.bucket.path("images")).unwrap();
    let square = image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30]));
    square.save(stage.bucket.path("images").join("square.png")).unwrap();
    stage
}

fn edit(id: &str, prompt: &str) -> Value {
    let image = format!("s3://{}/images/square.png", atelier::demo::local::BUCKET);
    json!({ "job_id": id, "task": "edit", "prompt": prompt, "images": [image], "width": 64, "height": 64 })
}

#[tokio::test]
async fn a_prompt_of_a_list_is_told_once_noted_first_and_never_generated() {
    let (_directory, path) = list("- category: weapons\n  terms: [gun]\n");
    let mut stage = Stage::gated(Capabilities::Generate, lists(vec![path])).await;
    let report = run(&mut stage, &body("armed", "a Gun on the beach")).await;
    let error = report.error.expect("an error");
    assert_eq!(
        (report.outcome, error.code.as_str(), error.category.as_deref()),
        (JobOutcome::Failed, "content_blocked", Some("weapons"))
    );
    assert_eq!(error.field.as_deref(), Some("prompt"));
    let told: Value = serde_json::from_str(&serde_json::to_string(&report.notifications).unwrap()).unwrap();
    let webhook: Value = serde_json::from_str(told[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!((&webhook["error"]["code"], &webhook["error"]["category"]), (&json!("content_blocked"), &json!("weapons")));
    let note = object(&stage, "armed", "blocked.json").expect("a note");
    assert_eq!((&note["category"], &note["stage"], &note["field"]), (&json!("weapons"), &json!("prompt"), &json!("prompt")));
    assert_eq!(report.measured.and_then(|measured| measured.blocked).map(|block| block.category), Some("weapons".into()));

    // Its message again, and the same request under another message: told again, from the note.
    let again = run(&mut stage, &body("armed", "a Gun on the beach")).await;
    assert_eq!((again.outcome, again.error.map(|error| error.code)), (JobOutcome::Failed, Some("content_blocked".into())));
    assert!(again.measured.is_some_and(|measured| measured.blocked.is_none()), "a note that is read is not counted again");
    assert_eq!((stage.generated(), stage.bucket.puts("/blocked.json")), (0, 1));
    assert_eq!(images_put(&stage), [""; 0]);

    // The id is free for a corrected request, whose own block replaces the note.
    let still = run(&mut stage, &body("armed", "two gun")).await;
    assert_eq!(still.error.map(|error| error.code).as_deref(), Some("content_blocked"));
    let corrected = run(&mut stage, &body("armed", "a flower on the beach")).await;
    assert_eq!((corrected.outcome, stage.generated()), (JobOutcome::Complete, 1));
    let record = object(&stage, "armed", "result.json").expect("a record");
    assert_eq!(record["safety"]["checks"][0]["backend"], "prompt_lists");
    assert_eq!(record["safety"]["policy"].as_str().map(str::len), Some(12));
}

#[tokio::test]
async fn without_a_note_nobody_is_told() {
    let (_directory, path) = list("- category: weapons\n  terms: [gun]\n");
    let mut stage = Stage::gated(Capabilities::Generate, lists(vec![path])).await;
    stage.bucket.trouble(crate::bucket::Trouble::ReadOnly);
    let report = run(&mut stage, &body("armed", "a gun")).await;
    assert_eq!((report.outcome, report.notifications.len()), (JobOutcome::StoreUnavailable, 0));
    stage.bucket.trouble(crate::bucket::Trouble::None);
    let report = run(&mut stage, &body("armed", "a gun")).await;
    assert_eq!((report.outcome, stage.generated()), (JobOutcome::Failed, 0));
}

#[tokio::test]
async fn a_job_in_a_batch_is_blocked_alone() {
    let (_directory, path) = list("- category: weapons\n  terms: [gun]\n");
    let mut stage = Stage::gated(Capabilities::Generate, lists(vec![path])).await;
    let mut batch = super::event(&body("one", "a mug"));
    let mut second = batch["Records"][0].clone();
    second["messageId"] = json!("two");
    second["body"] = json!(body("two", "a gun").to_string());
    batch["Records"].as_array_mut().unwrap().push(second);
    let reply = stage.handle_for_host(batch).await;
    let outcomes: Vec<_> = atelier::protocol::reply::decode(&reply).unwrap().iter().map(|job| job.outcome).collect();
    assert_eq!(outcomes, [JobOutcome::Complete, JobOutcome::Failed]);
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn no_edit_undresses_whatever_the_lists_are_and_off_means_off() {
    let mut stage = editing(|as_is| as_is).await;
    let report = run(&mut stage, &edit("undress", "take off her dress")).await;
    assert_eq!(report.error.and_then(|error| error.category).as_deref(), Some("undress"));
    let fine = run(&mut stage, &edit("dress", "a green dress")).await;
    assert_eq!((fine.outcome, stage.generated()), (JobOutcome::Complete, 1));
    let settings = Config::parse("test", "safety: {mode: off}", &Environment::new()).unwrap().safety;
    let mut off = editing(|_| settings).await;
    let allowed = run(&mut off, &edit("undress", "take off her dress")).await;
    assert_eq!(allowed.outcome, JobOutcome::Complete);
    let record = object(&off, "undress", "result.json").expect("a record");
    assert!(record.get("safety").is_none(), "nobody looked, and the record does not say so: {record}");
}

#[tokio::test]
async fn consent_is_asked_for_where_the_operator_says_so_and_kept() {
    let mut stage =
        editing(|settings| Settings { tryon: TryOnSettings { require_consent: true, ..settings.tryon }, ..settings }).await;
    let report = run(&mut stage, &edit("none", "a green dress")).await;
    let error = report.error.expect("an error");
    assert_eq!((error.code.as_str(), error.field.as_deref()), ("invalid_request", Some("consent")));
    assert!(error.message.contains("is required here") && error.message.contains("\"basis\": \"given\""), "{}", error.message);
    let mut given = edit("given", "a green dress");
    given["consent"] = json!({ "basis": "given", "reference": "form-17" });
    assert_eq!(run(&mut stage, &given).await.outcome, JobOutcome::Complete);
    let record = object(&stage, "given", "result.json").expect("a record");
    assert_eq!(record["consent"], given["consent"]);
    for (consent, problem) in [
        (json!({ "basis": "maybe", "reference": "x" }), "must be \"own\", \"given\" or \"synthetic\", got \"maybe\""),
        (json!({ "basis": "own" }), "is required"),
        (json!({ "basis": "own", "reference": "" }), "must be 1 to 256 characters"),
        (json!({ "basis": "own", "reference": "a\nb" }), "without control characters"),
        (json!("yes"), "consent"),
    ] {
        let mut wrong = edit("wrong", "a green dress");
        wrong["consent"] = consent;
        let error = run(&mut stage, &wrong).await.error.expect("an error");
        assert_eq!(error.code, "invalid_request");
        assert!(error.message.contains(problem), "{}", error.message);
    }
}

/// With consent a job may be allowed that is not without: it is another request.
#[test]
fn consent_is_part_of_a_request_and_none_changes_no_fingerprint() {
    let plain = crate::requests::parse(&body("one", "a mug")).unwrap();
    let mut with = body("one", "a mug");
    with["consent"] = json!({ "basis": "own", "reference": "me" });
    assert_ne!(plain.fingerprint, crate::requests::parse(&with).unwrap().fingerprint);
}

#[tokio::test]
async fn uploads_of_a_blocked_job_go_where_the_operator_says_so_and_others_stay() {
    for deletes in [false, true] {
        let mut stage = editing(|settings| Settings { delete_inputs: deletes, ..settings }).await;
        let own = stage.bucket.path("inputs/undress");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::copy(stage.bucket.path("images/square.png"), own.join("images-0.png")).unwrap();
        let mut job = edit("undress", "take off her dress");
        let bucket = atelier::demo::local::BUCKET;
        let elsewhere = job["images"][0].clone();
        job["images"] = json!([format!("s3://{bucket}/inputs/undress/images-0.png"), elsewhere]);
        let report = run(&mut stage, &job).await;
        assert_eq!(report.error.map(|error| error.code).as_deref(), Some("content_blocked"));
        assert_eq!(own.join("images-0.png").exists(), !deletes);
        assert!(stage.bucket.path("images/square.png").exists());
    }
}
