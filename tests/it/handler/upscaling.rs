//! Jobs whose images are enlarged: what comes out, what is said of it, and which jobs are refused before they cost anything.

use std::io::Cursor;
use std::path::Path;

use atelier::config;
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::workflow::StepName;
use atelier::workflow::invisible::Marked;
use atelier_engine::upscaler::Upscaler;
use candle_core::{DType, Device};
use image::RgbImage;
use serde_json::{Value, json};

use super::{body, brought_back, one, sqs};
use crate::stage::Stage;

const BOTH: [(&str, u32); 2] = [("x4", 4), ("compact_x2", 2)];

async fn stage(capabilities: Capabilities, change: impl FnOnce(&mut config::Workflow)) -> Stage {
    let stage = Stage::upscaling(None, capabilities, &BOTH, change).await;
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/plain.png");
    std::fs::copy(plain, stage.bucket.path("plain.png")).unwrap();
    stage
}

fn address() -> String {
    format!("s3://{}/plain.png", atelier::demo::local::BUCKET)
}

fn job(id: &str, upscale: Value) -> Value {
    let mut job = body(id);
    job["upscale"] = upscale;
    job
}

fn tryon(id: &str) -> Value {
    json!({ "job_id": id, "task": "tryon", "person": address(), "garments": [address()], "resolution": "480p", "upscale": { "factor": 2 } })
}

/// What the upscaler of this name makes of one colour.
fn enlarged(name: &str, colour: u8, (width, height): (u32, u32)) -> RgbImage {
    let file = format!("{}/tests/fixtures/upscalers/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let upscaler = Upscaler::load(Path::new(&file), DType::F32, &Device::Cpu).unwrap();
    upscaler.upscale(&RgbImage::from_pixel(width, height, image::Rgb([colour; 3])), || false).unwrap()
}

async fn complete(stage: &mut Stage, job: Value) -> Vec<RgbImage> {
    let id = job["job_id"].as_str().unwrap().to_owned();
    let count = job["num_images"].as_u64().unwrap_or(1) as usize;
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
    (0..count).map(|number| image::open(stage.bucket.image(&id, number)).unwrap().into_rgb8()).collect()
}

fn record(stage: &Stage, id: &str) -> Value {
    serde_json::from_slice(&std::fs::read(stage.bucket.path(&format!("generations/{id}/result.json"))).unwrap()).unwrap()
}

async fn refused(stage: &mut Stage, job: Value, field: &str, says: &str) {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/failed"), "{id}: {}", notified.body);
    assert_eq!(notified.body["error"]["field"], field, "{id}: {}", notified.body);
    assert!(notified.body["error"]["message"].as_str().unwrap().contains(says), "{id}: {}", notified.body);
}

#[tokio::test]
async fn every_image_of_a_job_is_enlarged_and_the_record_says_by_what() {
    // An image of so many pixels would get the mark, which changes it.
    let mut stage = stage(Capabilities::Generate, |workflow| workflow.encode.invisible_mark = Marked::Off).await;
    let mut two = job("two", json!({ "factor": 4 }));
    two["num_images"] = json!(2);
    two["seed"] = json!(7);
    let images = complete(&mut stage, two).await;
    assert!(images[0] == enlarged("x4", 7, (64, 64)) && images[1] == enlarged("x4", 8, (64, 64)));
    let stored = record(&stage, "two");
    assert_eq!(stored["upscaler"], json!({ "name": "x4", "factor": 4, "licence": "CC0-1.0" }));
    assert!(stored["timings_ms"]["upscale"].is_u64(), "{stored}");
    for image in stored["images"].as_array().unwrap() {
        assert_eq!((&image["width_px"], &image["height_px"]), (&json!(256), &json!(256)));
    }
    let images = complete(&mut stage, job("named", json!({ "factor": 2, "name": "compact_x2" }))).await;
    assert!(images[0] == enlarged("compact_x2", 42, (64, 64)));
    let images = complete(&mut stage, body("plain")).await;
    assert_eq!(images[0], RgbImage::from_pixel(64, 64, image::Rgb([42; 3])), "another job stays what it was");
    assert_eq!(record(&stage, "plain").get("upscaler"), None);
}

#[tokio::test]
async fn a_png_says_what_was_asked_for_and_another_request_is_a_conflict() {
    let mut stage = stage(Capabilities::Generate, |_| ()).await;
    complete(&mut stage, job("said", json!({ "factor": 2 }))).await;
    let file = std::fs::read(stage.bucket.image("said", 0)).unwrap();
    let reader = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
    let ours = reader.info().uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == "atelier").expect("its parameters");
    let ours: Value = serde_json::from_str(&ours.text).unwrap();
    assert_eq!((&ours["upscale"], &ours["width"]), (&json!({ "factor": 2 }), &json!(64)));
    // It is reported, and kept by the queue: no end of the job whose id it has.
    assert_eq!(stage.handle(one(job("said", json!({ "factor": 4 })), 1)).await, Ok(brought_back(&["m0"])));
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn a_tryon_and_an_edit_are_enlarged_and_what_stands_beside_them_is_not() {
    let mut stage = stage(Capabilities::Edit(vec![Mode::Fp8]), |workflow| workflow.postprocess.create_comparison = true).await;
    let images = complete(&mut stage, tryon("worn")).await;
    let edit = stage.edits().pop().expect("it was generated");
    assert_eq!(images[0].dimensions(), (2 * edit.width_px, 2 * edit.height_px));
    let stored = record(&stage, "worn");
    let comparison = &stored["images"][1];
    assert_eq!((stored["images"].as_array().unwrap().len(), stored["upscaler"]["name"].as_str()), (2, Some("compact_x2")));
    assert!(comparison["height_px"].as_u64().unwrap() < 2 * u64::from(edit.height_px), "{comparison}");
    let edited = json!({ "job_id": "edited", "task": "edit", "prompt": "a hat", "images": [address()], "width": 64, "height": 96,
        "upscale": { "factor": 4 } });
    assert_eq!(complete(&mut stage, edited).await[0].dimensions(), (256, 384));
}

#[tokio::test]
async fn what_cannot_be_enlarged_is_refused_before_anything_is_generated() {
    let mut stage = stage(Capabilities::Generate, |workflow| workflow.upscale.max_pixels = 200 * 200).await;
    refused(&mut stage, job("name", json!({ "factor": 4, "name": "x8" })), "upscale.name", "x4 (4), compact_x2 (2), got x8")
        .await;
    refused(&mut stage, job("large", json!({ "factor": 4 })), "upscale.factor", "4 gives 256x256, 65536 pixels; at most 40000")
        .await;
    assert_eq!(stage.generated(), 0);
    let mut bare = Stage::set().await;
    refused(&mut bare, job("bare", json!({ "factor": 2 })), "upscale", "has no upscalers").await;
    // Its size follows from the person's image, which is opened first.
    let mut worn = self::stage(Capabilities::Edit(vec![Mode::Fp8]), |workflow| workflow.upscale.max_pixels = 480 * 720).await;
    refused(&mut worn, tryon("worn"), "upscale.factor", "2 gives 960x1440").await;
    assert_eq!((bare.generated(), worn.generated()), (0, 0));
    let mut without =
        self::stage(Capabilities::Generate, |workflow| workflow.steps.retain(|step| *step != StepName::Upscale)).await;
    refused(&mut without, job("without", json!({ "factor": 2 })), "upscale", "no step `upscale`").await;
    complete(&mut without, body("plain")).await;
}

#[tokio::test]
async fn jobs_that_differ_in_it_alone_share_a_batch() {
    let mut stage = stage(Capabilities::Generate, |_| ()).await;
    let jobs = [job("a", json!({ "factor": 4 })), job("b", json!({ "factor": 2 })), body("c")];
    let messages: Vec<_> = jobs.into_iter().map(|job| (job, 1, None)).collect();
    assert_eq!(stage.handle(sqs(&messages)).await, Ok(brought_back(&[])));
    assert_eq!(stage.batches(), [3]);
    for (id, side) in [("a", 256), ("b", 128), ("c", 64)] {
        assert_eq!(image::open(stage.bucket.image(id, 0)).unwrap().into_rgb8().dimensions(), (side, side), "{id}");
    }
}
