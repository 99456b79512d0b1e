//! A job whose image is enlarged, from its message to its record: the binary, a tiny checkpoint and upscaler, a real S3 server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

/// A directory of models: the fixture with upscalers.
fn models(directory: &Path) -> String {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    for name in ["sd/sd15", "upscalers"] {
        std::os::unix::fs::symlink(format!("{fixtures}/{name}"), directory.join(name.trim_start_matches("sd/"))).unwrap();
    }
    let manifest = "family: stable-diffusion-1\ncheckpoint: sd15\nupscalers:\n  - {name: x4, factor: 4, weights: upscalers/x4.safetensors, licence: BSD-3-Clause}\n  \
                    - {name: x2, factor: 2, weights: upscalers/x2.safetensors}\ndefaults: {model: tiny, steps: 2, guidance_scale: 5.0, scheduler: euler, \
                    width: 64, height: 72, seed: 1, prefix: ''}\n";
    std::fs::write(directory.join("tiny.yaml"), manifest).unwrap();
    directory.display().to_string()
}

struct Run {
    ended: std::process::Output,
}

async fn invoke(world: &World, home: &Path, settings: &[(&str, &str)], job: &Value) -> Run {
    let models = home.display().to_string();
    let mut environment = world.environment(&[("ATELIER_MODEL", "tiny"), ("ATELIER__MODEL__DIRECTORY", &models)]);
    environment.insert("ATELIER__STORE__CACHE__DIRECTORY".into(), home.join("cache").display().to_string());
    environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let event = home.join("event.json");
    std::fs::write(&event, job.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["invoke", "-"]).current_dir(home).envs(environment).stdin(std::fs::File::open(event).unwrap());
    Run { ended: spawn_blocking(move || command.stderr(Stdio::piped()).output().unwrap()).await.unwrap() }
}

#[tokio::test]
async fn a_job_is_enlarged_recorded_and_replayed_and_its_model_without_a_step_does_not_start() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let home = tempfile::tempdir().unwrap();
    models(home.path());
    let job = |id: &str, factor: u32| json!({ "job_id": id, "prompt": "a lighthouse", "upscale": { "factor": factor } });
    for (job, factor, name) in [(job("four", 4), 4, "x4"), (job("two", 2), 2, "x2"), (job("four", 4), 4, "x4")] {
        let Run { ended } = invoke(&world, home.path(), &[], &job).await;
        let reply: Value = serde_json::from_slice(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
        assert_eq!(reply["status"], "complete", "{reply}");
        assert!(backend.terminal().await.path.ends_with("/complete"));
        let id = job["job_id"].as_str().unwrap();
        let record: Value = serde_json::from_slice(&std::fs::read(bucket.path(&format!("{id}/result.json"))).unwrap()).unwrap();
        assert_eq!((&record["upscaler"]["name"], &record["upscaler"]["factor"]), (&json!(name), &json!(factor)));
        let image = image::open(bucket.path(record["images"][0]["key"].as_str().unwrap())).unwrap().into_rgb8();
        assert_eq!(image.dimensions(), (factor * 64, factor * 72));
    }
    assert_eq!(bucket.puts("four/result.json"), 1, "the same request is generated once");
    let steps = [("ATELIER__WORKFLOW__STEPS", "[fetch, preprocess, screen, infer, check, encode, store]")];
    let Run { ended } = invoke(&world, home.path(), &steps, &job("none", 2)).await;
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("lacks `upscale`, and") && log.contains("names upscalers"), "{log}");
}
