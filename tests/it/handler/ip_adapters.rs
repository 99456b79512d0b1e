//! Jobs with IP-Adapters: how their images get to the engine and past the gate, and which jobs are refused.

use std::io::Cursor;

use atelier::job::capabilities::{Capabilities, Steering};
use atelier::job::task::control::NetName;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use super::{body, brought_back, one, sqs};
use crate::stage::Stage;

fn prompted() -> Capabilities {
    let named = |name: &str| NetName::new(name).unwrap();
    Capabilities::Steered(Steering { controlnets: vec![], ip_adapters: vec![named("plain"), named("plus")] })
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    image.write_to(&mut Cursor::new(&mut file), ImageFormat::Png).unwrap();
    file
}

/// The address of a file that it puts into the bucket.
fn put(stage: &Stage, name: &str, file: &[u8]) -> String {
    let path = stage.bucket.path(&format!("prompts/{name}"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, file).unwrap();
    format!("s3://{}/prompts/{name}", atelier::demo::local::BUCKET)
}

fn job(id: &str, prompts: Value) -> Value {
    let mut job = body(id);
    job["ip_adapters"] = prompts;
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
async fn an_image_arrives_as_large_as_it_was_sent() {
    let mut stage = Stage::with(prompted(), |_| ()).await;
    let wide = RgbImage::from_fn(200, 90, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]));
    let high = RgbImage::from_pixel(30, 77, Rgb([40, 90, 140]));
    let images = json!([put(&stage, "wide.png", &png(&wide)), put(&stage, "high.png", &png(&high))]);
    generated(&mut stage, job("two", json!([{ "name": "plus", "images": images, "scale": 0.25 }]))).await;
    let seen = stage.image_prompts();
    assert_eq!((seen.len(), seen[0].adapter.as_str(), seen[0].scale), (1, "plus", 0.25));
    assert!(seen[0].images == [wide, high], "in their own sizes, in the job's order");
}

#[tokio::test]
async fn what_no_ip_adapter_can_do_is_reported_once_with_what_there_is() {
    let mut stage = Stage::with(prompted(), |_| ()).await;
    let fine = put(&stage, "fine.png", &png(&RgbImage::new(64, 64)));
    let fixture = |name: &str| std::fs::read(format!("{}/tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = put(&stage, "text.png", &fixture("text.png"));
    let huge = put(&stage, "huge.png", &fixture("hundred_megapixels.png"));
    let gone = fine.replace("fine", "gone");
    let prompt = |name: &str, urls: &[&str]| json!({ "name": name, "images": urls });
    for (id, prompts, field, problem) in [
        (
            "name",
            json!([prompt("plain", &[&fine]), prompt("face", &[&fine])]),
            "ip_adapters[1].name",
            "must be one of plain, plus, the IP-Adapters of this function, got face",
        ),
        ("gone", json!([prompt("plus", &[&fine, &gone])]), "ip_adapters[0].images[1]", ""),
        ("text", json!([prompt("plus", &[&text])]), "ip_adapters[0].images[0]", "is none by its first bytes"),
        (
            "huge",
            json!([prompt("plus", &[&fine]), prompt("plain", &[&fine, &huge])]),
            "ip_adapters[1].images[1]",
            "at most 40000000 pixels",
        ),
    ] {
        assert_eq!(stage.handle(one(job(id, prompts), 1)).await, Ok(brought_back(&[])));
        let notified = stage.backend.terminal().await;
        assert!(notified.path.ends_with("/failed"), "{id}");
        assert_eq!(notified.body["error"]["field"], field, "{id}: {}", notified.body);
        assert!(notified.body["error"]["message"].as_str().unwrap().contains(problem), "{id}: {}", notified.body);
    }
    assert_eq!(stage.generated(), 0);
    for (capabilities, problem) in [
        (Capabilities::Generate, "this function's model has no IP-Adapters"),
        (Capabilities::Flow, "is not read by this function's model"),
    ] {
        let mut stage = Stage::with(capabilities, |_| ()).await;
        let mut job = job("none", json!([prompt("plus", &[&fine])]));
        job["scheduler"] = json!("euler");
        job["guidance_scale"] = json!(1);
        assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
        let notified = stage.backend.terminal().await;
        assert_eq!(notified.body["error"]["field"], "ip_adapters", "{}", notified.body);
        assert!(notified.body["error"]["message"].as_str().unwrap().contains(problem), "{}", notified.body);
    }
}

#[tokio::test]
async fn a_step_cache_of_another_kind_is_refused_where_there_are_ip_adapters() {
    let mut stage = Stage::with(prompted(), |_| ()).await;
    let mut job = body("cached");
    job["step_cache"] = json!({ "threshold": 0.1 });
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!(notified.body["error"]["field"], "step_cache", "{}", notified.body);
    assert_eq!(stage.generated(), 0);
}

#[tokio::test]
async fn jobs_with_other_images_share_a_batch() {
    let mut stage = Stage::with(prompted(), |_| ()).await;
    let some = put(&stage, "some.png", &png(&RgbImage::new(64, 64)));
    let other = put(&stage, "other.png", &png(&RgbImage::from_pixel(30, 64, Rgb([9; 3]))));
    let prompt = |urls: &[&str], scale: f64| json!([{ "name": "plus", "images": urls, "scale": scale }]);
    let jobs = [
        job("a", prompt(&[&some], 0.5)),
        job("b", prompt(&[&other], 0.5)),
        job("c", prompt(&[&some, &other], 0.5)),
        job("d", prompt(&[&some], 0.6)),
        body("e"),
    ];
    let messages: Vec<_> = jobs.into_iter().map(|job| (job, 1, None)).collect();
    assert_eq!(stage.handle(sqs(&messages)).await, Ok(brought_back(&[])));
    let mut batches = stage.batches();
    batches.sort_unstable();
    assert_eq!(batches, [1, 1, 1, 2], "a and b together; more images, another scale and none each alone");
}

#[tokio::test]
async fn a_png_names_its_image_prompts_without_signatures() {
    let mut stage = Stage::with(prompted(), |_| ()).await;
    let url = put(&stage, "drawn.png", &png(&RgbImage::new(64, 64)));
    generated(&mut stage, job("named", json!([{ "name": "plain", "images": [url] }]))).await;
    let file = std::fs::read(stage.bucket.image("named", 0)).unwrap();
    let reader = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let ours = texts.iter().find(|chunk| chunk.keyword == "atelier").expect("its parameters");
    let ours: Value = serde_json::from_str(&ours.text).unwrap();
    assert_eq!(ours["ip_adapters"], json!([{ "name": "plain", "images": [url], "scale": 1.0 }]));
}
