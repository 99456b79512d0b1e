//! Content credentials and the mark in every image: verified by other implementations, refused in words where a signer is wrong.

pub(crate) mod authority;
mod inputs;
mod inspected;
mod invisible;
mod kms;
mod marks;
mod peers;
mod refused;
mod runtime;
mod timestamps;

use std::path::PathBuf;

use atelier::content_credentials::ready;
use atelier::content_credentials::settings::Settings;
use atelier::content_credentials::signing::Signing;
use atelier::demo::local::BUCKET;
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::setting::Secret;
use serde_json::{Value, json};

use self::authority::Authority;
use crate::events::sample;
use crate::stage::Stage;

const FORMATS: [(&str, &str); 3] = [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")];

pub(crate) fn signing(authority: &Authority) -> Signing {
    ready::signing(&settings(authority)).expect("a good signer").expect("one")
}

fn settings(authority: &Authority) -> Settings {
    Settings {
        certificate: Some(authority.chain.clone()),
        private_key: Some(Secret::new(&authority.key)),
        ..Settings::default()
    }
}

/// An event with this one job.
fn event(body: &Value) -> Value {
    let mut event = sample("sqs-plain.json");
    event["Records"][0]["body"] = json!(body.to_string());
    event
}

/// What jobs of each task start from; `name` is a file next to the images.
fn with_inputs(stage: &Stage) {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images");
    for name in ["plain.png", "plain.webp", "turned.jpg"] {
        std::fs::copy(format!("{fixtures}/{name}"), stage.bucket.path(name)).expect("copied");
    }
}

fn address(name: &str) -> String {
    format!("s3://{BUCKET}/{name}")
}

/// A task by name, what a model must be able to do for it, a body, and the digital source type that its images have.
fn tasks() -> Vec<(&'static str, Capabilities, Value, &'static str)> {
    let edits = || Capabilities::Edit(vec![Mode::Fp8]);
    vec![
        ("text", Capabilities::Generate, json!({ "prompt": "a mug", "width": 64, "height": 64 }), "trainedAlgorithmicMedia"),
        (
            "inpaint",
            Capabilities::Generate,
            json!({ "prompt": "a mug", "width": 64, "height": 64, "init_image": { "url": address("plain.png") },
                "mask_image": { "url": address("plain.webp") } }),
            "compositeWithTrainedAlgorithmicMedia",
        ),
        (
            "tryon",
            edits(),
            json!({ "task": "tryon", "person": address("turned.jpg"), "garments": [address("plain.webp"), address("plain.png")],
                "resolution": "480p" }),
            "compositeWithTrainedAlgorithmicMedia",
        ),
        (
            "edit",
            edits(),
            json!({ "task": "edit", "model": "sd15", "prompt": "snow", "images": [address("plain.png"), address("turned.jpg")],
                "width": 64, "height": 64 }),
            "compositeWithTrainedAlgorithmicMedia",
        ),
    ]
}

/// Runs a job, whose images are to be named `output`, and gives the file of its first image.
async fn generated(stage: &mut Stage, id: &str, body: &Value, output: Value) -> PathBuf {
    let mut body = body.clone();
    body["job_id"] = json!(id);
    body["output"] = output;
    let reply = stage.handle(event(&body)).await.expect("handled");
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{id}: {reply} {}", notified.body);
    image(stage, id)
}

/// The file with a letter of its mark changed, and all else as it was: every decoder still opens it.
fn changed(file: &[u8]) -> Vec<u8> {
    const SIGNATURE_BYTES: usize = 8;
    // Not the manifest's, which has the word as well.
    const MARK: &[u8] = b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/";
    let mut changed = file.to_vec();
    let at = file.windows(MARK.len()).position(|window| window == MARK).expect("the mark") + MARK.len();
    changed[at] = b'T';
    let mut chunk = SIGNATURE_BYTES;
    while file.starts_with(b"\x89PNG") && chunk < file.len() {
        let data = u32::from_be_bytes(file[chunk..chunk + 4].try_into().expect("a length")) as usize;
        let end = chunk + 8 + data;
        let checksum = crc32fast::hash(&changed[chunk + 4..end]).to_be_bytes();
        changed[end..end + 4].copy_from_slice(&checksum);
        chunk = end + 4;
    }
    changed
}

/// The file that the record names, of which the record has the hash.
fn image(stage: &Stage, id: &str) -> PathBuf {
    use sha2::Digest as _;
    let record = std::fs::read(stage.bucket.path(&format!("generations/{id}/result.json"))).expect("a record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let path = stage.bucket.path(record["images"][0]["key"].as_str().expect("a key"));
    let file = std::fs::read(&path).expect("an image");
    let hash = base16ct::lower::encode_string(&sha2::Sha256::digest(&file));
    assert_eq!((&record["images"][0]["sha256"], &record["images"][0]["bytes"]), (&json!(hash), &json!(file.len())), "{id}");
    path
}
