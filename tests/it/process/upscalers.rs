//! A job whose image is enlarged, from its message to its record: the binary, a tiny checkpoint and upscaler, a real S3 server.

use serde_json::json;

use super::invoker::Invoker;

/// The fixture with upscalers.
const MANIFEST: &str = "family: stable-diffusion-1\ncheckpoint: sd15\nupscalers:\n  - {name: x4, factor: 4, weights: upscalers/x4.safetensors, licence: BSD-3-Clause}\n  \
                        - {name: x2, factor: 2, weights: upscalers/x2.safetensors}\ndefaults: {model: tiny, steps: 2, guidance_scale: 5.0, scheduler: euler, \
                        width: 64, height: 72, seed: 1, prefix: ''}\n";

#[tokio::test]
async fn a_job_is_enlarged_recorded_and_replayed_and_its_model_without_a_step_does_not_start() {
    let fixtures = [("sd15", "tests/fixtures/sd/sd15"), ("upscalers", "tests/fixtures/upscalers")];
    let mut invoker = Invoker::start(("tiny", MANIFEST), "", &fixtures).await;
    let job = |id: &str, factor: u32| json!({ "job_id": id, "prompt": "a lighthouse", "upscale": { "factor": factor } });
    for (job, factor, name) in [(job("four", 4), 4, "x4"), (job("two", 2), 2, "x2"), (job("four", 4), 4, "x4")] {
        let (record, image) = invoker.complete(&job).await;
        assert_eq!((&record["upscaler"]["name"], &record["upscaler"]["factor"]), (&json!(name), &json!(factor)));
        assert_eq!(image.dimensions(), (factor * 64, factor * 72));
    }
    assert_eq!(invoker.bucket.puts("four/result.json"), 1, "the same request is generated once");
    let steps = [("ATELIER__WORKFLOW__STEPS", "[fetch, preprocess, screen, infer, check, encode, store]")];
    let ended = invoker.invoke(&steps, &job("none", 2)).await;
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("lacks `upscale`, and") && log.contains("names upscalers"), "{log}");
}
