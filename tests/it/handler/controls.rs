//! Jobs with ControlNets: how their images get to the engine and past the gate, and which jobs are refused.

use std::io::Cursor;

use atelier::job::capabilities::{Capabilities, ControlNet, Steering};
use atelier::job::task::control::NetName;
use candle_core::Device;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use super::{body, brought_back, one, sqs};
use crate::stage::Stage;

fn controlled() -> Capabilities {
    let named = |name: &str| NetName::new(name).unwrap();
    let net = |name: &str| ControlNet { name: named(name), image: named(name) };
    Capabilities::Steered(Steering { controlnets: vec![net("canny"), net("depth")], ip_adapters: vec![] })
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    image.write_to(&mut Cursor::new(&mut file), ImageFormat::Png).unwrap();
    file
}

/// The address of a file that it puts into the bucket.
fn put(stage: &Stage, name: &str, file: &[u8]) -> String {
    let path = stage.bucket.path(&format!("controls/{name}"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, file).unwrap();
    format!("s3://{}/controls/{name}", atelier::demo::local::BUCKET)
}

fn job(id: &str, controls: Value) -> Value {
    let mut job = body(id);
    job["controlnets"] = controls;
    job
}

#[tokio::test]
async fn a_control_image_arrives_in_the_jobs_size_and_edges_are_opencvs() {
    let mut stage = Stage::with(controlled(), |_| ()).await;
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/canny.safetensors");
    let reference = candle_core::safetensors::load(reference, &Device::Cpu).unwrap();
    // In the job's own size, so that nothing is resized.
    let drawn = RgbImage::from_raw(64, 70, reference["soft_noise"].flatten_all().unwrap().to_vec1().unwrap()).unwrap();
    let drawn = image::imageops::crop_imm(&drawn, 0, 0, 64, 64).to_image();
    let plain = json!({ "name": "depth", "image": { "url": put(&stage, "drawn.png", &png(&drawn)) } });
    let seen = generated(&mut stage, job("plain", json!([plain]))).await;
    assert!(seen == drawn, "it is looked at as it was sent");
    let canny = |low: u32, high: u32| json!([{ "name": "canny", "image": plain["image"], "detect": "canny", "low_threshold": low, "high_threshold": high }]);
    let edges = generated(&mut stage, job("edges", canny(30, 90))).await;
    let expected = atelier_engine::canny::canny(&drawn, 30, 90);
    assert!(edges.pixels().zip(expected.iter()).all(|(edge, expected)| edge.0 == [*expected; 3]));
    assert!(expected.contains(&255));
    let by_default =
        generated(&mut stage, job("default", json!([{ "name": "canny", "image": plain["image"], "detect": "canny" }]))).await;
    assert!(by_default == generated(&mut stage, job("same", canny(100, 200))).await, "thresholds are 100 and 200");
    // Of another size and shape: stretched as diffusers does, here to a plain grey.
    let wide = RgbImage::from_pixel(200, 90, Rgb([40, 90, 140]));
    let wide = json!([{ "name": "depth", "image": { "url": put(&stage, "wide.png", &png(&wide)) } }]);
    assert_eq!(generated(&mut stage, job("wide", wide)).await, RgbImage::from_pixel(64, 64, Rgb([40, 90, 140])));
}

async fn generated(stage: &mut Stage, job: Value) -> RgbImage {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
    image::open(stage.bucket.image(&id, 0)).unwrap().into_rgb8()
}

#[tokio::test]
async fn what_no_controlnet_can_do_is_reported_once_with_what_there_is() {
    let mut stage = Stage::with(controlled(), |_| ()).await;
    let fine = put(&stage, "fine.png", &png(&RgbImage::new(64, 64)));
    let fixture = |name: &str| std::fs::read(format!("{}/tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = put(&stage, "text.png", &fixture("text.png"));
    let huge = put(&stage, "huge.png", &fixture("hundred_megapixels.png"));
    let gone = fine.replace("fine", "gone");
    let control = |name: &str, url: &str| json!({ "name": name, "image": { "url": url } });
    let edges_of_depth = json!({ "name": "depth", "image": { "url": fine }, "detect": "canny" });
    for (id, controls, field, problem) in [
        (
            "name",
            json!([control("canny", &fine), control("pose", &fine)]),
            "controlnets[1].name",
            "must be one of canny, depth, the ControlNets of this function, got pose",
        ),
        ("detect", json!([edges_of_depth]), "controlnets[0].detect", "is canny, but depth looks at images of the kind depth"),
        ("gone", json!([control("depth", &gone)]), "controlnets[0].image.url", ""),
        ("text", json!([control("depth", &text)]), "controlnets[0].image", "is none by its first bytes"),
        ("huge", json!([control("canny", &fine), control("depth", &huge)]), "controlnets[1].image", "at most 40000000 pixels"),
    ] {
        assert_eq!(stage.handle(one(job(id, controls), 1)).await, Ok(brought_back(&[])));
        let notified = stage.backend.terminal().await;
        assert!(notified.path.ends_with("/failed"), "{id}");
        assert_eq!(notified.body["error"]["field"], field, "{id}: {}", notified.body);
        assert!(notified.body["error"]["message"].as_str().unwrap().contains(problem), "{id}: {}", notified.body);
    }
    assert_eq!(stage.generated(), 0);
    for (capabilities, problem) in [
        (Capabilities::Generate, "this function's model has no ControlNets"),
        (Capabilities::Flow, "is not read by this function's model"),
    ] {
        let mut stage = Stage::with(capabilities, |_| ()).await;
        let mut job = job("none", json!([control("canny", &fine)]));
        job["scheduler"] = json!("euler");
        job["guidance_scale"] = json!(1);
        assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
        let notified = stage.backend.terminal().await;
        assert_eq!(notified.body["error"]["field"], "controlnets", "{}", notified.body);
        assert!(notified.body["error"]["message"].as_str().unwrap().contains(problem), "{}", notified.body);
    }
}

#[tokio::test]
async fn only_jobs_with_the_same_controls_share_a_batch() {
    let mut stage = Stage::with(controlled(), |_| ()).await;
    let one = put(&stage, "one.png", &png(&RgbImage::new(64, 64)));
    let other = put(&stage, "other.png", &png(&RgbImage::from_pixel(64, 64, Rgb([9; 3]))));
    let control = |url: &str| json!([{ "name": "canny", "image": { "url": url } }]);
    let jobs = [job("a", control(&one)), job("b", control(&one)), job("c", control(&other)), body("d")];
    let messages: Vec<_> = jobs.into_iter().map(|job| (job, 1, None)).collect();
    assert_eq!(stage.handle(sqs(&messages)).await, Ok(brought_back(&[])));
    let mut batches = stage.batches();
    batches.sort_unstable();
    assert_eq!(batches, [1, 1, 2], "a and b together, c and d each alone");
}

#[tokio::test]
async fn a_png_names_its_controls_without_signatures() {
    let mut stage = Stage::with(controlled(), |_| ()).await;
    let url = put(&stage, "drawn.png", &png(&RgbImage::new(64, 64)));
    let controls = json!([{ "name": "canny", "image": { "url": url }, "scale": 0.5, "end": 0.75, "detect": "canny" }]);
    generated(&mut stage, job("named", controls)).await;
    let file = std::fs::read(stage.bucket.image("named", 0)).unwrap();
    let reader = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let ours = texts.iter().find(|chunk| chunk.keyword == "atelier").expect("its parameters");
    let ours: Value = serde_json::from_str(&ours.text).unwrap();
    let named = json!([{ "name": "canny", "image": { "url": url }, "scale": 0.5, "start": 0.0, "end": 0.75, "detect": "canny",
        "low_threshold": 100, "high_threshold": 200 }]);
    assert_eq!(ours["controlnets"], named);
}
