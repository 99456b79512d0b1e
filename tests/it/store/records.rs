//! Records that earlier builds have written stay the proof that their jobs are done.

use atelier::job::outcome::Record;
use serde_json::{Value, json};

/// As commit 354b586 wrote `result.json`: the images were called `pictures` then, and had no SHA-256.
const EARLIER: &str = include_str!("../../fixtures/stored/bucket/generations/stored-idempotent/result.json");

#[test]
fn a_record_of_an_earlier_build_is_read_and_written_with_the_present_names() {
    let record: Record = serde_json::from_str(EARLIER).expect("a record");
    assert_eq!((record.job_id.as_str(), record.images.len()), ("stored-idempotent", 1));
    assert_eq!((record.images[0].key.as_str(), record.images[0].seed), ("generations/stored-idempotent/0.png", 42));
    assert_eq!(record.images[0].sha256, None);
    let written: Value = serde_json::to_value(&record).expect("JSON");
    assert_eq!(written["images"][0]["bytes"], json!(5_798));
    assert_eq!(written.get("pictures"), None);
}
