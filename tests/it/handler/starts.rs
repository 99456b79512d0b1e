//! Jobs that start from an image: how it gets to the engine, and which ones do not.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use atelier::job::capabilities::Capabilities;
use candle_core::{Device, Tensor};
use image::{GrayImage, ImageFormat, Luma, RgbImage};
use serde_json::{Value, json};

use super::{body, brought_back, one};
use crate::stage::Stage;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn put(stage: &Stage, name: &str, file: impl AsRef<[u8]>) -> Value {
    let path = stage.bucket.path(&format!("starts/{name}"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, file).unwrap();
    json!({ "url": format!("s3://{}/starts/{name}", atelier::demo::local::BUCKET) })
}

fn put_fixture(stage: &Stage, name: &str) -> Value {
    put(stage, name, std::fs::read(fixture("images").join(name)).unwrap())
}

fn job(id: &str, fields: &[(&str, Value)]) -> Value {
    let mut job = body(id);
    for (field, value) in fields {
        job[*field] = value.clone();
    }
    job
}

async fn generated(stage: &mut Stage, job: Value) -> RgbImage {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
    image::open(stage.bucket.image(&id, 0)).unwrap().into_rgb8()
}

#[tokio::test]
async fn image_and_mask_arrive_upright_and_in_the_jobs_size() {
    let mut stage = Stage::set().await;
    for file in ["turned.jpg", "transparent.png", "plain.webp"] {
        let start = put_fixture(&stage, file);
        let seen = generated(&mut stage, job(file, &[("init_image", start)])).await;
        assert_eq!(seen.dimensions(), (64, 64));
        let quarter = |x, y| seen.get_pixel(x, y).0;
        for (found, expected) in [(quarter(8, 8), [255, 0, 0]), (quarter(56, 8), [0, 255, 0]), (quarter(8, 56), [0, 0, 255])] {
            assert!(found.iter().zip(expected).all(|(found, expected): (&u8, u8)| found.abs_diff(expected) < 12), "{file}");
        }
    }
    let mask = GrayImage::from_fn(128, 32, |x, _| Luma([if x < 64 { 0 } else { 255 }]));
    let mut file = Vec::new();
    mask.write_to(&mut Cursor::new(&mut file), ImageFormat::Png).unwrap();
    let start = put_fixture(&stage, "plain.png");
    let mask = put(&stage, "half.png", file);
    let seen = generated(&mut stage, job("mask", &[("init_image", start), ("mask_image", mask)])).await;
    assert_eq!((seen.get_pixel(8, 8).0, seen.get_pixel(56, 56).0), ([0; 3], [255; 3]));
}

/// A flow is given image and mask as a UNet is.
#[tokio::test]
async fn a_flow_starts_from_an_image_and_under_a_mask() {
    let mut stage = Stage::with(Capabilities::Flow, |_| ()).await;
    let start = put_fixture(&stage, "turned.jpg");
    let flow = [("init_image", start.clone()), ("scheduler", json!("euler")), ("guidance_scale", json!(1))];
    let seen = generated(&mut stage, job("flow", &flow)).await;
    assert_eq!(seen.dimensions(), (64, 64));
    assert!(seen.get_pixel(8, 8).0.iter().zip([255, 0, 0]).all(|(found, expected): (&u8, u8)| found.abs_diff(expected) < 12));
    let mask = put_fixture(&stage, "plain.png");
    let masked = generated(&mut stage, job("masked", &[&flow[..], &[("mask_image", mask)]].concat())).await;
    assert_ne!(masked, seen, "the stand-in for an engine shows the mask");
}

/// Byte for byte: diffusers resizes with Pillow's Lanczos.
#[tokio::test]
async fn a_image_of_another_size_is_resized_as_diffusers_does() {
    let mut stage = Stage::set().await;
    let reference = candle_core::safetensors::load(fixture("sd/starts.safetensors"), &Device::Cpu).unwrap();
    let bytes = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let mut file = Vec::new();
    let larger = RgbImage::from_raw(100, 75, bytes(&reference["larger"])).unwrap();
    larger.write_to(&mut Cursor::new(&mut file), ImageFormat::Png).unwrap();
    let start = put(&stage, "larger.png", file);
    let ours =
        generated(&mut stage, job("resized", &[("init_image", start), ("width", json!(64)), ("height", json!(96))])).await;
    assert!(*ours.as_raw() == bytes(&reference["resized"]), "other bytes than Pillow's");
}

#[tokio::test]
async fn what_is_no_image_is_reported_once_and_nothing_is_generated() {
    let mut stage = Stage::set().await;
    let fine = put_fixture(&stage, "plain.png");
    let mut cases = Vec::new();
    for (name, problem) in [
        ("truncated.png", "truncated or damaged"),
        ("text.png", "is none by its first bytes"),
        ("image.gif", "got image/gif"),
        ("hundred_megapixels.png", "at most 40000000 pixels"),
    ] {
        let bad = put_fixture(&stage, name);
        cases.push((problem, "init_image", vec![("init_image", bad.clone())]));
        cases.push((problem, "mask_image", vec![("init_image", fine.clone()), ("mask_image", bad)]));
    }
    let events = cases.iter().enumerate().map(|(number, (_, _, fields))| one(job(&format!("bad-{number}"), fields), 1));
    let replies = stage.handle_all(events.collect()).await;
    let notified = stage.backend.terminals(cases.len()).await;
    for (number, (problem, field, _)) in cases.iter().enumerate() {
        assert_eq!(replies[number], Ok(brought_back(&[])));
        let error = &notified[&format!("bad-{number}")].body["error"];
        assert_eq!(error["field"], *field, "{problem}: {error}");
        assert!(error["message"].as_str().unwrap().contains(problem), "{problem}: {error}");
    }
    assert_eq!(stage.generated(), 0);
}
