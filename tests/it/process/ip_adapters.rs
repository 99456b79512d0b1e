//! A job with an IP-Adapter from its message to its record: the binary, a tiny checkpoint, a real S3 server.

use serde_json::{Value, json};

use super::invoker::Invoker;

/// The fixture with IP-Adapters and a ControlNet.
const MANIFEST: &str = "family: stable-diffusion-1\ncheckpoint: sd15\ncontrolnets:\n  - {name: canny, weights: controlnets/sd15/canny, image: canny}\n\
                        ip_adapters:\n  - {name: plain, weights: ip_adapters/sd15/plain.safetensors, image_encoder: ip_adapters/image_encoder}\n  \
                        - {name: plus, weights: ip_adapters/sd15/plus.safetensors, image_encoder: ip_adapters/image_encoder}\ndefaults: {model: \
                        tiny, steps: 4, guidance_scale: 5.0, scheduler: euler, width: 64, height: 72, seed: 1, prefix: ''}\n";

#[tokio::test]
async fn a_job_with_ip_adapters_is_generated_recorded_and_replayed() {
    let fixtures = [
        ("sd15", "tests/fixtures/sd/sd15"),
        ("controlnets", "tests/fixtures/controlnets"),
        ("ip_adapters", "tests/fixtures/ip_adapters"),
    ];
    let mut invoker = Invoker::start(("tiny", MANIFEST), "", &fixtures).await;
    let url = invoker.image("turned.jpg");
    let other = invoker.image("plain.png");
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
        let (record, image) = invoker.complete(job).await;
        assert_eq!((&record["images"][0]["width_px"], &record["images"][0]["height_px"]), (&json!(64), &json!(72)));
        images.push(image);
    }
    let [plain, none, one, again, both, edges, replayed] = &images[..] else { panic!("{}", images.len()) };
    assert!(none == plain, "a scale of 0 is no image prompt");
    assert!(one != plain && both != one && both != plain && edges != one, "each is another image");
    assert!(again == one && replayed == one, "the same request is the same image");
    assert_eq!(invoker.bucket.puts("seen/result.json"), 1, "and is generated once");
}
