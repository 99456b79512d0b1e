//! Edits on their way through the steps: which images reach the engine in which size, and what is refused.

use atelier::config::Workflow;
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier_engine::AlphaSource;
use image::RgbImage;
use serde_json::{Value, json};

use super::{brought_back, one, sqs};
use crate::stage::Stage;

async fn stage(capabilities: Capabilities, change: impl FnOnce(&mut Workflow)) -> Stage {
    let stage = Stage::with(capabilities, change).await;
    std::fs::create_dir_all(stage.bucket.path("images")).unwrap();
    for (name, width_px, height_px) in [("wide", 96, 32), ("high", 40, 90), ("square", 50, 50)] {
        let image = RgbImage::from_fn(width_px, height_px, |x, y| image::Rgb([x as u8, y as u8, 7]));
        image.save(stage.bucket.path("images").join(format!("{name}.png"))).unwrap();
    }
    stage
}

fn edit(id: &str, images: &[&str], more: Value) -> Value {
    let bucket = atelier::demo::local::BUCKET;
    let images: Vec<String> = images.iter().map(|name| format!("s3://{bucket}/images/{name}.png")).collect();
    let mut body = json!({ "job_id": id, "task": "edit", "model": "sd15", "prompt": "make it snow", "images": images });
    let Value::Object(more) = more else { panic!("an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

#[tokio::test]
async fn the_first_image_decides_the_size_unless_the_job_does() {
    let mut stage = self::stage(Capabilities::Edit(vec![Mode::Fp8]), |_| ()).await;
    let cases = [
        ("first", &["wide", "high"][..], json!({}), (1_760, 576)),
        ("other", &["high", "wide", "square"][..], json!({}), (672, 1_536)),
        ("sides", &["square"][..], json!({ "width": 208, "height": 80, "num_images": 3, "seed": 7 }), (208, 80)),
        ("width", &["square"][..], json!({ "width": 80 }), (80, 1_024)),
    ];
    for (id, images, more, size) in cases {
        assert_eq!(stage.handle(one(edit(id, images, more), 1)).await, Ok(brought_back(&[])), "{id}");
        let request = stage.edits().pop().expect("generated");
        assert_eq!((request.width_px, request.height_px), size, "{id}");
        let sizes: Vec<_> = request.images.iter().map(RgbImage::dimensions).collect();
        let sent = images.iter().map(|name| match *name {
            "wide" => (96, 32),
            "high" => (40, 90),
            _ => (50, 50),
        });
        assert_eq!(sizes, sent.collect::<Vec<_>>(), "{id}: the engine gets them as they were sent");
        assert_eq!(image::image_dimensions(stage.bucket.image(id, 0)).unwrap(), size, "{id}");
    }
    let request = &stage.edits()[2];
    assert_eq!((request.seeds.clone(), request.steps, request.mode.as_deref()), (vec![7, 8, 9], 4, Some("fp8")));
    assert_eq!((request.prompt.as_str(), request.negative_prompt.as_str()), ("make it snow", ""));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
}

#[tokio::test]
async fn what_is_wrong_is_said_once_and_nothing_is_generated() {
    let mut stage = self::stage(Capabilities::Edit(vec![Mode::Fp8]), |_| ()).await;
    std::fs::write(stage.bucket.path("images").join("text.png"), "no image").unwrap();
    let mut tryon = edit("task", &["wide"], json!({}));
    tryon["task"] = json!("generate");
    tryon.as_object_mut().unwrap().remove("images");
    let cases = [
        (edit("file", &["wide", "text"], json!({})), "images[1]", "must be a PNG, JPEG or WebP image"),
        (edit("gone", &["missing"], json!({})), "images[0]", ""),
        (edit("mode", &["wide"], json!({ "mode": "base" })), "mode", "must be fp8, what this function has the weights of"),
        (edit("model", &["wide"], json!({ "model": "other" })), "model", "the model this function serves"),
        (edit("lora", &["wide"], json!({ "lora": [{ "url": "s3://b/l" }] })), "lora", "is not read by this function's model"),
        (tryon, "task", "this function serves sd15, which does tryon and edit and not generate"),
    ];
    for (body, field, says) in cases {
        assert_eq!(stage.handle(sqs(&[(body, 1, None)])).await, Ok(brought_back(&[])), "{field}: nothing is retried");
        let notified = stage.backend.terminal().await;
        let error = &notified.body["error"];
        assert_eq!((notified.path.ends_with("/failed"), &error["field"]), (true, &json!(field)), "{}", notified.body);
        assert!(error["message"].as_str().unwrap().contains(says), "{error} does not say {says:?}");
    }
    assert_eq!(stage.generated(), 0);
}

#[tokio::test]
async fn an_edit_is_generated_once_and_says_in_its_file_how() {
    let mut stage = self::stage(Capabilities::Edit(vec![Mode::Fp8]), |_| ()).await;
    let body = edit("once", &["wide"], json!({ "width": 64, "height": 64, "watermark": { "text": "Ada" } }));
    for _ in 0..2 {
        assert_eq!(stage.handle(one(body.clone(), 1)).await, Ok(brought_back(&[])));
    }
    assert_eq!((stage.generated(), stage.bucket.puts("/result.json")), (1, 1));
    let file = std::fs::read(stage.bucket.image("once", 0)).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let ours = texts.iter().find(|chunk| chunk.keyword == "atelier").expect("its parameters");
    let ours: Value = serde_json::from_str(&ours.text).unwrap();
    assert_eq!((&ours["prompt"], &ours["width"], &ours["seed"]), (&json!("make it snow"), &json!(64), &json!(42)));
    assert_eq!(ours["images"], body["images"]);
}

/// A flow without modes does both tasks; an edit without a size is as large as its first image, in whole tokens.
#[tokio::test]
async fn a_model_without_modes_does_edits_in_the_size_of_the_first_image() {
    let mut stage = self::stage(Capabilities::EditFlow, |workflow| workflow.preprocess.edit_keeps_size = true).await;
    let least = json!({ "steps": 4, "guidance_scale": 1 });
    let refused = [
        (
            edit("mode", &["wide"], json!({ "mode": "base", "guidance_scale": 1 })),
            "mode",
            "means something only with a model that has modes",
        ),
        (edit("guided", &["wide"], json!({ "guidance_scale": 4 })), "guidance_scale", "must be at most 1"),
        (edit("own", &["wide"], json!({})), "guidance_scale", "must be at most 1"),
        (
            edit("cache", &["wide"], json!({ "step_cache": { "interval": 2 }, "guidance_scale": 1 })),
            "step_cache",
            "must have threshold",
        ),
    ];
    for (body, field, says) in refused {
        assert_eq!(stage.handle(sqs(&[(body, 1, None)])).await, Ok(brought_back(&[])), "{field}: nothing is retried");
        let error = &stage.backend.terminal().await.body["error"];
        assert!(error["field"] == field && error["message"].as_str().unwrap().contains(says), "{error} does not say {says:?}");
    }
    assert_eq!(stage.generated(), 0);
    for (id, images, size) in [("wide", &["wide", "high"][..], (96, 32)), ("high", &["high", "wide"][..], (32, 80))] {
        assert_eq!(stage.handle(one(edit(id, images, least.clone()), 1)).await, Ok(brought_back(&[])), "{id}");
        let request = stage.edits().pop().expect("generated");
        assert_eq!(((request.width_px, request.height_px), request.mode, request.steps), (size, None, 4), "{id}");
        assert!(stage.backend.terminal().await.path.ends_with("/complete"));
    }
    std::fs::write(stage.bucket.path("images").join("snow.safetensors"), "weights").unwrap();
    let lora =
        json!([{ "url": format!("s3://{}/images/snow.safetensors", atelier::demo::local::BUCKET), "scale": 0.5, "alpha": 2 }]);
    let with_lora = edit("with_lora", &["wide"], json!({ "steps": 4, "guidance_scale": 1, "lora": lora }));
    assert_eq!(stage.handle(one(with_lora, 1)).await, Ok(brought_back(&[])));
    assert!(stage.backend.terminal().await.path.ends_with("/complete"));
    let loras = stage.edits().pop().expect("generated").loras;
    assert_eq!(loras.len(), 1);
    assert!((loras[0].scale - 0.5).abs() < f64::EPSILON && loras[0].alpha == AlphaSource::Given(2.0), "{loras:?}");
    let text = json!({ "job_id": "text", "prompt": "a mug", "model": "sd15", "guidance_scale": 1, "scheduler": "euler" });
    assert_eq!(stage.handle(one(text, 1)).await, Ok(brought_back(&[])));
    assert!(stage.backend.terminal().await.path.ends_with("/complete"));
    assert_eq!(stage.generated(), 4);
}
