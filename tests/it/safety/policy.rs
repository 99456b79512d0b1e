//! What was judged by one policy counts for no other: results on the disk, notes in the bucket. And what is to go, goes.

use std::fs;
use std::path::{Path, PathBuf};

use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::protocol::reply::JobOutcome;
use atelier::safety::settings::Settings;
use serde_json::{Value, json};

use super::audit::forget_checksums;
use super::{body, images_put, object, run};
use crate::bucket::Trouble;
use crate::stage::Stage;

/// The files below a directory, but those of locks.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.push(path);
        }
    }
    found
}

async fn gated() -> Stage {
    let list = tempfile::NamedTempFile::new().unwrap();
    fs::write(list.path(), "- category: weapons\n  terms: [gun]\n").unwrap();
    let path = list.path().to_owned();
    Stage::gated(Capabilities::Generate, |settings| Settings { prompt_lists: vec![path], ..settings }).await
}

/// The policy in the one result that is held, replaced by another.
fn rewrite(stage: &Stage, policy: &str) {
    let [held] = files(&stage.held()).try_into().expect("one result is held");
    let file = fs::read(&held).unwrap();
    let end = file.iter().position(|byte| *byte == b'\n').unwrap();
    let mut head: Value = serde_json::from_slice(&file[..end]).unwrap();
    assert_eq!(head["policy"].as_str().map(str::len), Some(12), "{head}");
    head["policy"] = json!(policy);
    fs::write(held, [head.to_string().as_bytes(), &file[end..]].concat()).unwrap();
}

#[tokio::test]
async fn a_result_that_another_policy_judged_is_generated_again() {
    let mut stage = gated().await;
    for (id, rewritten, generated) in [("same", None, 1), ("other", Some("0123456789ab"), 3)] {
        let before = stage.generated();
        stage.bucket.trouble(Trouble::ReadOnly);
        let held = run(&mut stage, &body(id, "a mug")).await;
        assert_eq!((held.outcome, stage.generated()), (JobOutcome::StoreUnavailable, before + 1));
        if let Some(policy) = rewritten {
            rewrite(&stage, policy);
        }
        stage.bucket.trouble(Trouble::None);
        assert_eq!(run(&mut stage, &body(id, "a mug")).await.outcome, JobOutcome::Complete);
        assert_eq!(stage.generated(), generated, "{id}");
        assert_eq!(files(&stage.held()).len(), 0);
        let safety = &object(&stage, id, "result.json").expect("a record")["safety"];
        assert_ne!(safety["policy"], "0123456789ab");
    }
}

#[tokio::test]
async fn a_note_of_another_policy_blocks_nothing_and_is_replaced() {
    let mut stage = gated().await;
    run(&mut stage, &body("armed", "a gun")).await;
    let own = object(&stage, "armed", "blocked.json").expect("a note");
    let path = stage.bucket.path("generations/armed/blocked.json");
    let mut other = own.clone();
    other["policy"] = json!("0123456789ab");
    fs::write(&path, other.to_string()).unwrap();
    forget_checksums(&stage);
    let again = run(&mut stage, &body("armed", "a gun")).await;
    assert_eq!(again.error.map(|error| error.code).as_deref(), Some("content_blocked"));
    assert!(again.measured.is_some_and(|measured| measured.blocked.is_some()), "it was judged, not read");
    assert_eq!(object(&stage, "armed", "blocked.json").expect("a note")["policy"], own["policy"]);

    // The same request, which this policy allows.
    let mug = body("mug", "a mug");
    let fingerprint = crate::requests::parse(&mug).unwrap().fingerprint;
    let mut note = own;
    note["job_id"] = json!("mug");
    note["fingerprint"] = json!(fingerprint);
    let path = stage.bucket.path("generations/mug/blocked.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, note.to_string()).unwrap();
    forget_checksums(&stage);
    let of_this_policy = run(&mut stage, &mug).await;
    assert_eq!(of_this_policy.error.map(|error| error.code).as_deref(), Some("content_blocked"), "a note of its own is read");
    note["policy"] = json!("0123456789ab");
    fs::write(&path, note.to_string()).unwrap();
    forget_checksums(&stage);
    assert_eq!(run(&mut stage, &mug).await.outcome, JobOutcome::Complete);
    assert_eq!(images_put(&stage).len(), 1);
}

async fn editing(settings: impl FnOnce(Settings) -> Settings) -> (Stage, String) {
    let stage = Stage::gated(Capabilities::Edit(vec![Mode::Fp8]), settings).await;
    fs::create_dir_all(stage.bucket.path("images")).unwrap();
    let square = image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30]));
    square.save(stage.bucket.path("images").join("square.png")).unwrap();
    (stage, format!("s3://{}/images/square.png", atelier::demo::local::BUCKET))
}

#[tokio::test]
async fn a_negative_prompt_may_not_leave_out_clothes() {
    let (mut stage, image) = editing(|as_is| as_is).await;
    for (negative, says) in [("clothes, blurry", Some("negative_prompt")), ("blurry, wrinkled clothes", None)] {
        let id = format!("negative-{}", says.is_some());
        let job = json!({ "job_id": id, "task": "edit", "prompt": "at the beach", "negative_prompt": negative,
            "images": [image], "width": 64, "height": 64 });
        let error = run(&mut stage, &job).await.error;
        let field = error.as_ref().and_then(|error| error.field.clone());
        assert_eq!((error.and_then(|error| error.category).as_deref(), field.as_deref()), (says.map(|_| "undress"), says));
    }
}

#[tokio::test]
async fn no_copy_of_a_blocked_jobs_inputs_stays_where_they_are_to_go() {
    for deletes in [false, true] {
        let (mut stage, image) = editing(|settings| Settings { delete_inputs: deletes, ..settings }).await;
        let job = |id: &str, prompt: &str| json!({ "job_id": id, "task": "edit", "prompt": prompt, "images": [image], "width": 64, "height": 64 });
        run(&mut stage, &job("fine", "a green square")).await;
        assert_eq!(files(&stage.inputs()).len(), 1);
        let blocked = run(&mut stage, &job("not", "undress her")).await;
        assert_eq!(blocked.error.map(|error| error.code).as_deref(), Some("content_blocked"));
        assert_eq!(files(&stage.inputs()).len(), usize::from(!deletes));
    }
}
