//! `atelier inspect` as a process of its own: what it shows, and the exit code that says whether credentials verify.

use std::path::Path;
use std::process::{Command, Output};

use atelier::demo::s3::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};
use atelier::job::capabilities::Capabilities;
use serde_json::{Value, json};

use super::authority::Authority;
use super::{FORMATS, generated, signing, tasks};
use crate::stage::Stage;

pub(super) fn inspected(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.arg("inspect").args(arguments).env_clear().envs(environment.iter().copied()).current_dir(std::env::temp_dir());
    let Output { status, stdout, stderr } = command.output().expect("a process");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

pub(super) fn name(path: &Path) -> &str {
    path.to_str().expect("a name")
}

#[tokio::test]
async fn credentials_mark_and_texts_are_shown_and_the_exit_code_says_what_they_are_worth() {
    let authority = Authority::good();
    let home = tempfile::tempdir().expect("a directory");
    let root = home.path().join("root.pem");
    std::fs::write(&root, &authority.root).expect("written");
    let stranger = home.path().join("stranger.pem");
    std::fs::write(&stranger, Authority::good().root).expect("written");
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let mut bare = Stage::set().await;
    let (_, _, body, _) = tasks().remove(0);
    for (format, content_type) in FORMATS {
        let signed = generated(&mut stage, format, &body, json!({ "format": format })).await;
        let plain = generated(&mut bare, format, &body, json!({ "format": format })).await;
        let changed = home.path().join("changed");
        std::fs::write(&changed, super::changed(&std::fs::read(&signed).expect("a file"))).expect("written");
        let anchors = ["--trust-anchors", name(&root)];
        let strangers = ["--trust-anchors", name(&stranger)];
        for (file, anchors, code, words) in [
            (&signed, &anchors[..], 0, "credentials  trusted: "),
            (&signed, &[], 0, "credentials  valid: "),
            (&signed, &strangers, 1, "credentials  valid: "),
            (&changed, &anchors, 1, "failure    assertion.dataHash.mismatch: "),
            (&changed, &[], 1, "credentials  invalid: "),
            (&plain, &anchors, 3, "credentials  none"),
        ] {
            let (found, shown, said) = inspected(&[&[name(file)], anchors].concat(), &[]);
            assert_eq!((found, said.as_str()), (Some(code), ""), "{format}: {shown}");
            assert!(shown.contains(words) && shown.contains(content_type), "{format} {words}: {shown}");
            assert!(shown.contains("rainedAlgorithmicMedia"), "{format}: {shown}");
            let (found, json, _) = inspected(&[&[name(file), "--json"], anchors].concat(), &[]);
            let report: Value = serde_json::from_str(&json).expect("JSON");
            assert_eq!((found, &report["format"]), (Some(code), &json!(content_type)));
            assert_eq!(report["content_credentials"].is_null(), code == 3, "{json}");
        }
        let (_, shown, _) = inspected(&[name(&signed)], &[]);
        for words in ["signed by  tests signer", "generator  atelier ", "action     c2pa.created, 20", "sd15"] {
            assert!(shown.contains(words), "{format}, {words}: {shown}");
        }
        assert_eq!(shown.contains("text         parameters: a mug Steps: "), format == "png", "{shown}");
        assert_eq!(shown.contains("chunks       IHDR 13, "), format == "png", "{shown}");
    }
}

#[tokio::test]
async fn an_object_in_a_bucket_is_inspected_where_it_lies() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let (_, _, body, _) = tasks().remove(0);
    let path = generated(&mut stage, "job", &body, json!({})).await;
    let key = path.strip_prefix(stage.bucket.path("")).expect("below the bucket").to_str().expect("a key").to_owned();
    let endpoint = format!("http://{}", stage.bucket.address);
    let inspect = move |key: String| {
        let environment = [
            ("ATELIER__STORE__ENDPOINT_URL", endpoint.as_str()),
            ("ATELIER__STORE__FORCE_PATH_STYLE", "true"),
            ("ATELIER__STORE__REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
        ];
        inspected(&[&format!("s3://{}/{key}", atelier::demo::local::BUCKET)], &environment)
    };
    let (found, missing) =
        tokio::task::spawn_blocking(move || (inspect(key), inspect("missing.png".into()))).await.expect("both");
    assert_eq!(found.0, Some(0), "{} {}", found.1, found.2);
    assert!(found.1.contains("credentials  valid: "), "{}", found.1);
    assert_eq!(missing.0, Some(1));
    assert!(missing.2.contains("/missing.png cannot be read: "), "{}", missing.2);
}

#[test]
fn what_is_no_image_is_said_in_words() {
    let home = tempfile::tempdir().expect("a directory");
    let page = home.path().join("page.png");
    std::fs::write(&page, "<!doctype html>").expect("written");
    for (file, words) in [(name(&page), "text/html (a web page)"), ("/nowhere.png", "/nowhere.png cannot be read")] {
        let (code, shown, said) = inspected(&[file], &[]);
        assert_eq!((code, shown.as_str()), (Some(1), ""));
        assert!(said.contains(words), "{said}");
    }
}
