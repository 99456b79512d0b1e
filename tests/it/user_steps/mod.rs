//! Steps of the user's own: real programs and servers, and no image that leaves without their answer.

mod command;
mod examples;
mod hosts;
mod http;

use std::path::Path;

use atelier::job::capabilities::Capabilities;
use atelier::workflow::StepName;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::stage::Stage;

const UNCHANGED: &str = r#"{"unchanged": true}"#;

/// `workflow.user_steps` with these, and `workflow.steps` with them before `check`.
fn listed(steps: &[(&str, Value)]) -> (Value, Vec<StepName>) {
    let mut settings = json!({ "command": {}, "http": {} });
    let mut list = StepName::BUILT_IN.to_vec();
    let check = list.iter().position(|step| *step == StepName::Check).expect("a step");
    for (place, (step, own)) in steps.iter().enumerate() {
        let (kind, name) = step.split_once(':').expect("a kind");
        settings[kind][name] = own.clone();
        list.insert(check + place, StepName::named(step).expect("a name"));
    }
    (settings, list)
}

/// A function with these steps.
async fn stage(steps: &[(&str, Value)]) -> Stage {
    let (settings, list) = listed(steps);
    Stage::with(Capabilities::Generate, |workflow| {
        workflow.user_steps = serde_json::from_value(settings).expect("settings");
        workflow.steps = list;
    })
    .await
}

/// What a shell does in this directory.
fn shell(directory: &Path, script: &str) -> Value {
    let script = format!("cd '{}'\n{script}", directory.display());
    json!({ "program": ["sh", "-c", script], "timeout_ms": 20_000 })
}

/// An image of one colour, as a step answers with it.
fn png(width_px: u32, height_px: u32, rgb: [u8; 3]) -> String {
    let mut file = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(width_px, height_px, image::Rgb(rgb));
    image.write_to(&mut file, image::ImageFormat::Png).expect("a PNG");
    STANDARD.encode(file.into_inner())
}

fn opened(data: &Value) -> (Vec<u8>, image::RgbImage) {
    let file = STANDARD.decode(data.as_str().expect("base64")).expect("base64");
    let image = image::load_from_memory(&file).expect("an image").into_rgb8();
    (file, image)
}

/// Nothing of the job is where a caller or a later attempt finds it.
fn assert_nothing_left(stage: &Stage, what: &str) {
    assert_eq!(crate::safety::images_put(stage), [""; 0], "{what}");
    assert_eq!(stage.bucket.puts("/result.json"), 0, "{what}");
    assert_eq!(std::fs::read_dir(stage.held()).map_or(0, Iterator::count), 0, "{what}");
}
