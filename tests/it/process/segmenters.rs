//! A try-on whose mask is made by a segmenter next to the bundled model, from its message to its record: the binary, a real S3 server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

/// A directory of models: the bundled try-on model with a fixture's segmenter.
fn models(directory: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, place) in [("tiny-edit", "models/tiny-edit"), ("clothes", "tests/fixtures/segmenter/oblong")] {
        std::os::unix::fs::symlink(root.join(place), directory.join(name)).unwrap();
    }
    let manifest = include_str!("../../../models/tiny-edit.yaml");
    let (before, after) = manifest.split_once("checker:").unwrap();
    let (_, after) = after.split_once("\nmodes:").unwrap();
    let manifest = format!("{before}segmenter: {{directory: clothes, licence: CC0-1.0}}\nmodes:{after}");
    std::fs::write(directory.join("worn.yaml"), manifest).unwrap();
}

async fn invoke(world: &World, home: &Path, settings: &[(&str, &str)], job: &Value) -> std::process::Output {
    let models = home.display().to_string();
    let mut environment = world.environment(&[("ATELIER_MODEL", "worn"), ("ATELIER__MODEL__DIRECTORY", &models)]);
    environment.insert("ATELIER__STORE__CACHE__DIRECTORY".into(), home.join("cache").display().to_string());
    environment.insert("ATELIER__SAFETY__MODE".into(), "off".into());
    environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let event = home.join("event.json");
    std::fs::write(&event, job.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["invoke", "-"]).current_dir(home).envs(environment).stdin(std::fs::File::open(event).unwrap());
    spawn_blocking(move || command.stderr(Stdio::piped()).output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_mask_is_made_recorded_and_replayed_and_a_model_without_the_step_does_not_start() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let home = tempfile::tempdir().unwrap();
    models(home.path());
    let person = RgbImage::from_fn(96, 128, |x, y| Rgb([(x * 2) as u8, (y * 3 / 2) as u8, (x * y % 251) as u8]));
    person.save(bucket.path("person.png")).unwrap();
    let address = format!("s3://{}/person.png", atelier::demo::local::BUCKET);
    let job = json!({ "job_id": "worn", "task": "tryon", "person": address, "garments": [address], "steps": 1,
        "auto_mask": { "classes": ["nothing", "coat", "trousers", "shoe", "hat"], "dilate_px": 0 } });
    for _ in 0..2 {
        let ended = invoke(&world, home.path(), &[], &job).await;
        let reply: Value = serde_json::from_slice(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
        assert_eq!(reply["status"], "complete", "{reply}");
        assert!(backend.terminal().await.path.ends_with("/complete"));
    }
    assert_eq!(bucket.puts("worn/result.json"), 1, "the same request is generated once");
    let record: Value = serde_json::from_slice(&std::fs::read(bucket.path("generations/worn/result.json")).unwrap()).unwrap();
    let made = &record["auto_mask"];
    assert_eq!((&made["coverage"], &made["licence"], &made["dilate_px"]), (&json!(1.0), &json!("CC0-1.0"), &json!(0)));
    assert!(made["note"].is_string() && !made["classes"].as_array().unwrap().is_empty(), "{made}");
    let steps = [("ATELIER__WORKFLOW__STEPS", "[fetch, preprocess, infer, encode, store]")];
    let ended = invoke(&world, home.path(), &steps, &job).await;
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("lacks `mask`, and") && log.contains("names a segmenter"), "{log}");
}
