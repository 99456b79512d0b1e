//! A job with an IP-Adapter from its message to its record: the binary, a tiny checkpoint, a real S3 server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

/// A directory of models: the fixture with IP-Adapters and a ControlNet.
fn models(directory: &Path) -> String {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::os::unix::fs::symlink(format!("{fixtures}/sd/sd15"), directory.join("sd15")).unwrap();
    for name in ["controlnets", "ip_adapters"] {
        std::os::unix::fs::symlink(format!("{fixtures}/{name}"), directory.join(name)).unwrap();
    }
    let manifest = "family: stable-diffusion-1\ncheckpoint: sd15\ncontrolnets:\n  - {name: canny, weights: controlnets/sd15/canny, image: canny}\n\
                    ip_adapters:\n  - {name: plain, weights: ip_adapters/sd15/plain.safetensors, image_encoder: ip_adapters/image_encoder}\n  \
                    - {name: plus, weights: ip_adapters/sd15/plus.safetensors, image_encoder: ip_adapters/image_encoder}\ndefaults: {model: \
                    tiny, steps: 4, guidance_scale: 5.0, scheduler: euler, width: 64, height: 72, seed: 1, prefix: ''}\n";
    std::fs::write(directory.join("tiny.yaml"), manifest).unwrap();
    directory.display().to_string()
}

#[tokio::test]
async fn a_job_with_ip_adapters_is_generated_recorded_and_replayed() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let home = tempfile::tempdir().unwrap();
    let models = models(home.path());
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/turned.jpg"), bucket.path("house.jpg")).unwrap();
    let url = format!("s3://{}/house.jpg", atelier::demo::local::BUCKET);
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/plain.png"), bucket.path("plain.png")).unwrap();
    let other = format!("s3://{}/plain.png", atelier::demo::local::BUCKET);
    let prompt = |name: &str, images: &[&String], scale: f64| json!({ "name": name, "images": images, "scale": scale });
    let job = |id: &str, prompts: Vec<Value>| json!({ "job_id": id, "prompt": "a lighthouse", "ip_adapters": prompts });
    let one = prompt("plain", &[&url], 0.8);
    let mut with_edges = job("edges", vec![one.clone()]);
    with_edges["controlnets"] = json!([{ "name": "canny", "image": { "url": url }, "detect": "canny" }]);
    let jobs = [
        job("plain", vec![]),
        job("none", vec![prompt("plus", &[&url], 0.0)]),
        job("seen", vec![one.clone()]),
        job("again", vec![one.clone()]),
        job("both", vec![one.clone(), prompt("plus", &[&other, &url], 0.5)]),
        with_edges,
        job("seen", vec![one]),
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
    let [plain, none, one, again, both, edges, replayed] = &images[..] else { panic!("{}", images.len()) };
    assert!(none == plain, "a scale of 0 is no image prompt");
    assert!(one != plain && both != one && both != plain && edges != one, "each is another image");
    assert!(again == one && replayed == one, "the same request is the same image");
    assert_eq!(bucket.puts("seen/result.json"), 1, "and is generated once");
}
