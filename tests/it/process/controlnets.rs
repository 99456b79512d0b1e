//! A job with a ControlNet from its message to its record: the binary, a tiny checkpoint, a real S3 server.

use serde_json::{Value, json};

use super::invoker::Invoker;

/// The fixture with ControlNets.
const MANIFEST: &str = "family: stable-diffusion-1\ncheckpoint: sd15\ncontrolnets:\n  - {name: canny, weights: controlnets/sd15/canny, image: canny}\n  \
                        - {name: depth, weights: controlnets/sd15/depth_original.safetensors, image: depth}\ndefaults: {model: tiny, steps: 4, \
                        guidance_scale: 5.0, scheduler: euler, width: 64, height: 72, seed: 1, prefix: ''}\n";

#[tokio::test]
async fn a_job_with_controlnets_is_generated_recorded_and_replayed() {
    let fixtures = [("sd15", "tests/fixtures/sd/sd15"), ("controlnets", "tests/fixtures/controlnets")];
    let mut invoker = Invoker::start(("tiny", MANIFEST), "", &fixtures).await;
    let url = invoker.image("turned.jpg");
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
        let (record, image) = invoker.complete(job).await;
        assert_eq!((&record["images"][0]["width_px"], &record["images"][0]["height_px"]), (&json!(64), &json!(72)));
        images.push(image);
    }
    let [plain, none, edges, again, both, replayed] = &images[..] else { panic!("{}", images.len()) };
    assert!(none == plain, "a scale of 0 is no ControlNet");
    assert!(edges != plain && both != edges && both != plain, "each is another image");
    assert!(again == edges && replayed == edges, "the same request is the same image");
    assert_eq!(invoker.bucket.puts("edges/result.json"), 1, "and is generated once");
}
