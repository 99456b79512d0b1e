//! Where the alpha of a LoRA is looked for when its file does not say it.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::AlphaSource;
use serde_json::{Value, json};

use super::{body, brought_back, one};
use crate::stage::Stage;

const BUCKET: &str = atelier::demo::local::BUCKET;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd/adapter_files").join(name)
}

fn put(stage: &Stage, from: &str, to: &str) {
    let path = stage.bucket.path(to);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(fixture(from), path).unwrap();
}

/// What the engine is given for this LoRA of a job.
async fn alpha(stage: &mut Stage, id: &str, lora: Value) -> AlphaSource {
    let mut job = body(id);
    job["lora"] = json!([lora]);
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let told = stage.backend.terminal().await;
    assert!(told.path.ends_with("/complete"), "{}", told.body);
    stage.loras().pop().expect("a LoRA").alpha
}

fn content(alpha: &AlphaSource) -> Vec<u8> {
    let AlphaSource::Config(path) = alpha else { panic!("no configuration: {alpha:?}") };
    fs::read(path).unwrap()
}

#[tokio::test]
async fn alpha_is_looked_for_beside_the_file_and_in_the_job() {
    let mut stage = Stage::set().await;
    put(&stage, "peft_text/adapter_model.safetensors", "loras/ada/adapter_model.safetensors");
    put(&stage, "peft_text/adapter_config.json", "loras/ada/adapter_config.json");
    put(&stage, "peft_unet/adapter_model.safetensors", "loras/alone/adapter_model.safetensors");
    put(&stage, "unet_alpha.safetensors", "loras/ada/unet.safetensors");
    let text_config = fs::read(fixture("peft_text/adapter_config.json")).unwrap();
    let ada = format!("s3://{BUCKET}/loras/ada/adapter_model.safetensors");
    let alone = format!("s3://{BUCKET}/loras/alone/adapter_model.safetensors");

    let beside = alpha(&mut stage, "side", json!({ "url": ada })).await;
    assert_eq!(content(&beside), text_config);
    assert_eq!(alpha(&mut stage, "alone", json!({ "url": alone })).await, AlphaSource::File);
    let named = json!({ "url": alone, "config_url": format!("s3://{BUCKET}/loras/ada/adapter_config.json") });
    assert_eq!(content(&alpha(&mut stage, "named", named).await), text_config);
    let given = alpha(&mut stage, "given", json!({ "url": ada, "alpha": 3 })).await;
    assert_eq!(given, AlphaSource::Given(3.0));
    let says_it = json!({ "url": format!("s3://{BUCKET}/loras/ada/unet.safetensors") });
    assert_eq!(alpha(&mut stage, "says-it", says_it).await, AlphaSource::File);
}

#[tokio::test]
async fn configuration_that_is_named_and_not_there_is_refused() {
    let mut stage = Stage::set().await;
    put(&stage, "peft_unet/adapter_model.safetensors", "loras/adapter_model.safetensors");
    let mut job = body("no-config");
    let url = format!("s3://{BUCKET}/loras/adapter_model.safetensors");
    job["lora"] = json!([{ "url": url, "config_url": format!("s3://{BUCKET}/loras/none.json") }]);
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let told = stage.backend.terminal().await;
    assert!(told.path.ends_with("/failed"), "{}", told.body);
    assert_eq!(told.body["error"]["field"], "lora[0].config_url", "{}", told.body);
}
