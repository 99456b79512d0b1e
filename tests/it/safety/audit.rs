//! `atelier audit` as a process of its own: what it prints of a job, and the exit code that says whether it holds.

use std::process::{Command, Output};

use atelier::demo::s3::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};
use atelier::job::capabilities::Capabilities;
use atelier::safety::settings::Settings;
use serde_json::{Value, json};

use super::{body, run};
use crate::credentials::authority::Authority;
use crate::credentials::signing;
use crate::stage::Stage;

/// Exit code, standard output and standard error.
type Said = (Option<i32>, String, String);

/// On a thread of its own: the bucket answers on this one.
async fn audited(stage: &Stage, arguments: &[&str]) -> Said {
    let endpoint = format!("http://{}", stage.bucket.address);
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let auditing = tokio::task::spawn_blocking(move || {
        let environment = [
            ("ATELIER__STORE__ENDPOINT_URL", endpoint.as_str()),
            ("ATELIER__STORE__FORCE_PATH_STYLE", "true"),
            ("ATELIER__STORE__REGION", "us-east-1"),
            ("AWS_STORAGE_BUCKET_NAME", atelier::demo::local::BUCKET),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
        command.arg("audit").args(arguments).env_clear().envs(environment).current_dir(std::env::temp_dir());
        let Output { status, stdout, stderr } = command.output().expect("a process");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (status.code(), text(&stdout), text(&stderr))
    });
    auditing.await.expect("a process")
}

/// The embedded store keeps what it knows of its objects in files next to the bucket.
pub(super) fn forget_checksums(stage: &Stage) {
    let root = stage.bucket.path("");
    for entry in std::fs::read_dir(root.parent().expect("a root")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[tokio::test]
async fn a_chain_that_holds_and_one_that_does_not() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let mut job = body("chain", "a mug");
    job["consent"] = json!({ "basis": "given", "reference": "form-17" });
    run(&mut stage, &job).await;
    let (code, shown, said) = audited(&stage, &["chain"]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""), "{shown}");
    for words in [
        "job          chain",
        "consent    given, form-17",
        "model        sd15, Apache-2.0",
        "safety       policy ",
        "signed by    CN=tests signer, O=tests of atelier, certificate ",
        "file       is the one of the record",
        "credentials valid: ",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.pem");
    std::fs::write(&root, &authority.root).unwrap();
    let stranger = directory.path().join("stranger.pem");
    std::fs::write(&stranger, Authority::good().root).unwrap();
    let anchored = audited(&stage, &["chain", "--trust-anchors", root.to_str().unwrap()]).await;
    assert!(anchored.0 == Some(0) && anchored.1.contains("credentials trusted: "), "{anchored:?}");
    assert_eq!(audited(&stage, &["chain", "--trust-anchors", stranger.to_str().unwrap()]).await.0, Some(1));
    let (code, shown, _) = audited(&stage, &["chain", "--json"]).await;
    let report: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((code, &report["images"][0]["credentials"]), (Some(0), &json!("valid")));

    // Another image lies where the record says that its own does.
    let image = stage.bucket.image("chain", 0);
    let other = image::RgbImage::from_pixel(64, 64, image::Rgb([1, 2, 3]));
    other.save(&image).unwrap();
    forget_checksums(&stage);
    let (code, shown, _) = audited(&stage, &["chain"]).await;
    assert!(code == Some(1) && shown.contains("has the SHA-256 "), "{shown}");
    std::fs::remove_file(&image).unwrap();
    let (code, shown, _) = audited(&stage, &["chain"]).await;
    assert!(code == Some(1) && shown.contains("cannot be read"), "{shown}");
}

#[tokio::test]
async fn a_job_that_was_not_allowed_and_one_that_never_was() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list.yaml");
    std::fs::write(&list, "- category: weapons\n  terms: [gun]\n").unwrap();
    let mut stage = Stage::gated(Capabilities::Generate, |settings| Settings { prompt_lists: vec![list], ..settings }).await;
    run(&mut stage, &body("armed", "a gun")).await;
    let (code, shown, said) = audited(&stage, &["armed"]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""), "{shown}");
    assert!(shown.contains("not allowed  weapons (prompt)") && shown.contains("prompt     prompt_lists"), "{shown}");
    let (code, shown, _) = audited(&stage, &["never"]).await;
    assert!(code == Some(3) && shown.contains("no job of this id is complete"), "{shown}");
    let (code, _, said) = audited(&stage, &["../never"]).await;
    assert!(code == Some(2) && said.contains("must be 1 to 128 of the characters"), "{said}");
}
