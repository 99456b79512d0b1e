//! A try-on whose mask is made by a segmenter next to the bundled model, from its message to its record: the binary, a real S3 server.

use image::{Rgb, RgbImage};
use serde_json::json;

use super::invoker::Invoker;

/// The bundled try-on model with a fixture's segmenter, of random weights.
fn manifest() -> String {
    let manifest = include_str!("../../../models/tiny-edit.yaml");
    let (before, after) = manifest.split_once("checker:").unwrap();
    let (_, after) = after.split_once("\nmodes:").unwrap();
    format!("{before}segmenter: {{directory: clothes, licence: CC0-1.0}}\nmodes:{after}")
}

#[tokio::test]
async fn a_mask_is_made_recorded_and_replayed_and_a_model_without_the_step_does_not_start() {
    let fixtures = [("tiny-edit", "models/tiny-edit"), ("clothes", "tests/fixtures/segmenter/oblong")];
    let mut invoker = Invoker::start(("worn", &manifest()), "generations/", &fixtures).await;
    let person = RgbImage::from_fn(96, 128, |x, y| Rgb([(x * 2) as u8, (y * 3 / 2) as u8, (x * y % 251) as u8]));
    person.save(invoker.bucket.path("person.png")).unwrap();
    let address = format!("s3://{}/person.png", atelier::demo::local::BUCKET);
    let job = json!({ "job_id": "worn", "task": "tryon", "person": address, "garments": [address], "steps": 1,
        "auto_mask": { "classes": ["nothing", "coat", "trousers", "shoe", "hat"], "dilate_px": 0 } });
    invoker.complete(&job).await;
    let (record, _) = invoker.complete(&job).await;
    assert_eq!(invoker.bucket.puts("worn/result.json"), 1, "the same request is generated once");
    let made = &record["auto_mask"];
    assert_eq!((&made["coverage"], &made["licence"], &made["dilate_px"]), (&json!(1.0), &json!("CC0-1.0"), &json!(0)));
    assert!(made["note"].is_string() && !made["classes"].as_array().unwrap().is_empty(), "{made}");
    let steps = [("ATELIER__WORKFLOW__STEPS", "[fetch, preprocess, infer, encode, store]")];
    let ended = invoker.invoke(&steps, &job).await;
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("lacks `mask`, and") && log.contains("names a segmenter"), "{log}");
}
