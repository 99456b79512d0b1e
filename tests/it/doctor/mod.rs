//! `atelier doctor` as a process of its own, against real servers: what is good passes, what is broken is named.

mod bucket;
mod machine;
mod queues;

use std::collections::BTreeMap;
use std::process::Command;

use atelier::content_credentials::ready;
use atelier::content_credentials::settings::Settings;
use serde_json::Value;

use crate::servers::s3::{ACCESS_KEY_ID, S3, SECRET_ACCESS_KEY};

const BUCKET: &str = "images";
const TOKEN: &str = "a-token-of-more-than-32-characters";

/// What one run said.
struct Report {
    code: Option<i32>,
    findings: Vec<Value>,
    /// Standard output and standard error.
    said: String,
}

impl Report {
    /// The findings of one check, as `state: found -> fix`.
    fn of(&self, check: &str) -> Vec<String> {
        let words = self.findings.iter().filter(|finding| finding["check"] == check).map(|finding| {
            let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {} -> {}", word("state"), word("found"), word("fix"))
        });
        words.collect()
    }

    /// The only finding of a check begins so and has these words.
    fn expect(&self, check: &str, state: &str, words: &str) {
        let found = self.of(check);
        let [finding] = &found[..] else { panic!("{check}: {found:?}\n{}", self.said) };
        assert!(finding.starts_with(&format!("{state}: ")) && finding.contains(words), "{check}: {finding}\n{}", self.said);
    }
}

/// An environment in which everything is good, as far as this server goes.
fn good(s3: &S3, directory: &std::path::Path) -> BTreeMap<String, String> {
    let path = |name: &str| directory.join(name).display().to_string();
    [
        ("AWS_STORAGE_BUCKET_NAME", BUCKET.to_owned()),
        ("ATELIER__STORE__ENDPOINT_URL", format!("http://{}", s3.address)),
        ("ATELIER__STORE__FORCE_PATH_STYLE", "true".to_owned()),
        ("ATELIER__STORE__CACHE__DIRECTORY", path("cache")),
        ("ATELIER__SOURCES__SPOOL__DIRECTORY", path("spool")),
        ("ATELIER__MODEL__DIRECTORY", format!("{}/models", env!("CARGO_MANIFEST_DIR"))),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("INTERNAL_API_TOKEN", TOKEN.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Runs `atelier doctor --json` in a directory of its own; `changes` over the good environment, an empty value takes a variable away.
async fn examined(s3: &S3, changes: &[(&str, &str)], arguments: &[&str]) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let mut environment = good(s3, directory.path());
    environment.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment.retain(|_, value| !value.is_empty());
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["doctor", "--json"]).args(arguments).env_clear().envs(environment).current_dir(directory.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    Report { code: output.status.code(), findings, said }
}

#[tokio::test]
async fn what_is_good_passes_and_nothing_is_left_behind() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[], &[]).await;
    assert_eq!(report.code, Some(0), "{}", report.said);
    report.expect("config", "ok", "ATELIER__STORE__ENDPOINT_URL");
    report.expect("credentials", "ok", "region us-east-1");
    report.expect("bucket", "ok", "listed, written, read, kept on condition");
    report.expect("inputs", "warn", "store.unlisted_input_buckets: refuse now");
    report.expect("sqs", "skip", "SQS_QUEUE_URL");
    report.expect("rabbitmq", "skip", "RABBITMQ_HOST");
    report.expect("spool", "ok", "free");
    report.expect("token", "ok", "callers present");
    report.expect("webhook", "skip", "--webhook");
    report.expect("signer", "warn", "the machine-readable mark (XMP) and no content credentials");
    report.expect("model", "ok", "tiny-sd");
    report.expect("gpu", "skip", "generates on the CPU");
    report.expect("clock", "ok", "that of S3");
    let deleted = s3.take_requests().into_iter().filter(|request| request.starts_with("DELETE /images/generations/.doctor/"));
    assert_eq!(deleted.count(), 1);
}

#[tokio::test]
async fn what_signs_images_is_examined_and_not_made() {
    let s3 = S3::start(&[BUCKET]).await;
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("signer");
    let development = ("ATELIER__CONTENT_CREDENTIALS__DEVELOPMENT_DIRECTORY", directory.to_str().unwrap());
    examined(&s3, &[development], &[]).await.expect("signer", "warn", "a development signer, whose key is made in ");
    assert!(!directory.exists(), "a check leaves nothing behind");
    let settings = Settings { development_directory: Some(directory.clone()), ..Settings::default() };
    ready::signing(&settings).unwrap();
    examined(&s3, &[development], &[]).await.expect("signer", "warn", "a development signer that no one trusts");

    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let chain = file("chain.pem");
    let key = file("key.pem");
    let root = file("root.pem");
    for (certificate, state, words) in [
        (chain.as_str(), "ok", "atelier development signer"),
        (root.as_str(), "fail", "content_credentials.certificate_file: "),
        ("/nowhere.pem", "fail", "content_credentials.certificate_file: \"/nowhere.pem\" cannot be read"),
    ] {
        let changes = [
            ("ATELIER__CONTENT_CREDENTIALS__CERTIFICATE_FILE", certificate),
            ("ATELIER__CONTENT_CREDENTIALS__PRIVATE_KEY_FILE", key.as_str()),
        ];
        examined(&s3, &changes, &[]).await.expect("signer", state, words);
    }
}

#[tokio::test]
async fn where_inputs_may_come_from_is_reported() {
    let s3 = S3::start(&[BUCKET]).await;
    let refused = examined(&s3, &[("ATELIER__STORE__UNLISTED_INPUT_BUCKETS", "refuse")], &[]).await;
    refused.expect("inputs", "ok", "the results bucket alone");
    let listed = [("ATELIER__STORE__INPUT_BUCKETS", "[images, loras]"), ("ATELIER__STORE__ALLOW_RESULTS_AS_INPUTS", "true")];
    examined(&s3, &listed, &[]).await.expect("inputs", "ok", "from images, loras and every job's images");
}

#[tokio::test]
async fn each_model_of_a_host_is_examined() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[("ATELIER__HOST__MODELS", "[{name: tiny-edit}, {name: sd15}, {name: tiny-sd}]")], &[]).await;
    assert_eq!(report.code, Some(1), "{}", report.said);
    let [edit, missing, small] = &report.of("model")[..] else { panic!("{}", report.said) };
    assert!(edit.starts_with("ok: tiny-edit: ") && small.starts_with("ok: tiny-sd: "), "{}", report.said);
    assert!(missing.starts_with("fail: sd15: ") && missing.ends_with("atelier models pull sd15"), "{missing}");
}

#[tokio::test]
async fn people_get_a_line_a_check() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.arg("doctor").env_clear().envs(good(&s3, directory.path())).current_dir(directory.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let checks: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let all = [
        "config",
        "credentials",
        "bucket",
        "inputs",
        "sqs",
        "rabbitmq",
        "spool",
        "token",
        "webhook",
        "signer",
        "safety",
        "model",
        "gpu",
        "clock",
    ];
    assert_eq!(checks, all, "{text}");
    assert!(output.status.success(), "{text}");
}

#[tokio::test]
async fn a_wrong_configuration_is_reported_as_everywhere_and_the_rest_is_skipped() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[("ATELIER__STORE__BUKET", "x")], &[]).await;
    assert_eq!(report.code, Some(1));
    report.expect("config", "fail", "buket");
    report.expect("bucket", "skip", "cannot be read");
    assert!(s3.take_requests().is_empty());
}

#[tokio::test]
async fn no_secret_is_ever_printed() {
    let s3 = S3::start(&[BUCKET]).await;
    let secrets =
        ["whsec_bm9ib2R5IG1heSBldmVyIHNlZSB0aGlzIGhlcmU=", "amqp-password-nobody-sees", TOKEN, "hook-token-in-a-path"];
    let changes = [
        ("WEBHOOK_SIGNING_SECRET", secrets[0]),
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", "9"),
        ("RABBITMQ_PASS", secrets[1]),
        ("BACKEND_API_URL", "http://127.0.0.1:9/hook-token-in-a-path"),
        ("LOG_LEVEL", "debug"),
    ];
    let report = examined(&s3, &changes, &["--webhook", "https://127.0.0.1:9/hook-token-in-a-path"]).await;
    assert_eq!(report.code, Some(1), "{}", report.said);
    for secret in secrets.into_iter().chain([SECRET_ACCESS_KEY]) {
        assert!(!report.said.contains(secret), "{secret} was printed: {}", report.said);
    }
}
