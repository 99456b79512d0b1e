//! A job with a ControlNet from its message to its record: the binary, a tiny checkpoint, a real S3 server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

/// A directory of models: the fixture with ControlNets.
fn models(directory: &Path) -> String {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::os::unix::fs::symlink(format!("{fixtures}/sd/sd15"), directory.join("sd15")).unwrap();
    std::os::unix::fs::symlink(format!("{fixtures}/controlnets"), directory.join("controlnets")).unwrap();
    let manifest = "family: stable-diffusion-1\ncheckpoint: sd15\ncontrolnets:\n  - {name: canny, weights: controlnets/sd15/canny, image: canny}\n  \
                    - {name: depth, weights: controlnets/sd15/depth_original.safetensors, image: depth}\ndefaults: {model: tiny, steps: 4, \
                    guidance_scale: 5.0, scheduler: euler, width: 64, height: 72, seed: 1, prefix: ''}\n";
    std::fs::write(directory.join("tiny.yaml"), manifest).unwrap();
    directory.display().to_string()
}

#[tokio::test]
async fn a_job_with_controlnets_is_generated_recorded_and_replayed() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let home = tempfile::tempdir().unwrap();
    let models = models(home.path());
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/turned.jpg"), bucket.path("house.jpg")).unwrap();
    let url = format!("s3://{}/house.jpg", atelier::demo::local::BUCKET);
    let control = |name: &str, more: Value| {
        let mut control = json!({ "name": name, "image": { "url": url } });
        more.as_object().unwrap().iter().for_each(|(field, value)| control[field] = value.clone());
        control
    };
    let job = |id: &str, controls: Vec<Value>| json!({ "job_id": id, "prompt": "a lighthouse", "controlnets": controls });
    let edges = control("canny", json!({ "detect": "canny" }));
    let jobs = [
        job("plain", vec![]),
        job("none", vec![control("canny", json!({ "scale": 0 }))]),
        job("edges", vec![edges.clone()]),
        job("again", vec![edges.clone()]),
        job("both", vec![edges.clone(), control("depth", json!({ "scale": 0.5, "start": 0.25, "end": 0.75 }))]),
        job("edges", vec![edges]),
    ];
    let mut images = Vec::new();
    for job in &jobs {
        let id = job["job_id"].as_str().unwrap();
        let mut environment = world.environment(&[("ATELIER_MODEL", "tiny"), ("ATELIER__MODEL__DIRECTORY", &models)]);
        environment.insert("ATELIER__STORE__CACHE__DIRECTORY".into(), home.path().join("cache").display().to_string());
        let event = home.path().join("event.json");
        std::fs::write(&event, job.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
        command.args(["invoke", "-"]).current_dir(home.path()).envs(environment).stdin(std::fs::File::open(event).unwrap());
        let ended = spawn_blocking(move || command.stderr(Stdio::piped()).output().unwrap()).await.unwrap();
        let reply: Value = serde_json::from_slice(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
        assert_eq!(reply["status"], "complete", "{id}: {reply}");
        assert!(backend.terminal().await.path.ends_with("/complete"));
        let record: Value = serde_json::from_slice(&std::fs::read(bucket.path(&format!("{id}/result.json"))).unwrap()).unwrap();
        let image = &record["images"][0];
        assert_eq!((&image["width_px"], &image["height_px"]), (&json!(64), &json!(72)));
        images.push(image::open(bucket.path(image["key"].as_str().unwrap())).unwrap().into_rgb8());
    }
    let [plain, none, edges, again, both, replayed] = &images[..] else { panic!("{}", images.len()) };
    assert!(none == plain, "a scale of 0 is no ControlNet");
    assert!(edges != plain && both != edges && both != plain, "each is another image");
    assert!(again == edges && replayed == edges, "the same request is the same image");
    assert_eq!(bucket.puts("edges/result.json"), 1, "and is generated once");
}
