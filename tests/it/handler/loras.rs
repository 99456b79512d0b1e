//! Where the alpha of a LoRA is looked for when its file does not say it.

use std::fs;
use std::path::{Path, PathBuf};

use atelier::job::capabilities::Capabilities;
use atelier::outbound::Settings;
use atelier_engine::AlphaSource;
use serde_json::{Value, json};

use super::{body, brought_back, one};
use crate::servers::http::{Answer, HttpServer};
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
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
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
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/failed"), "{}", notified.body);
    assert_eq!(notified.body["error"]["field"], "lora[0].config_url", "{}", notified.body);
}

/// A file as PEFT's `save_pretrained` writes it, of two matrices of one zero each; all of it is UTF-8.
fn saved_by_peft() -> String {
    let tensor = |matrix: &str, start: u32| {
        let entry = json!({ "dtype": "F32", "shape": [1, 1], "data_offsets": [start, start + 4] });
        (format!("base_model.model.mid_block.to_q.{matrix}.weight"), entry)
    };
    let header = json!(std::collections::BTreeMap::from([tensor("lora_A", 0), tensor("lora_B", 4)])).to_string();
    format!("\0\u{2}\0\0\0\0\0\0{header:<512}\0\0\0\0\0\0\0\0")
}

#[tokio::test]
async fn alpha_is_looked_for_beside_a_file_of_a_web_server_too_unless_its_address_is_signed() {
    let reach = Settings { allow_http: true, allow: vec!["127.0.0.1/32".into()], ..Settings::default() };
    let mut stage = Stage::reaching(&reach, Capabilities::Generate, |_| ()).await;
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2}"#;
    let answers = [Answer::with(200, &[], &saved_by_peft()), Answer::with(200, &[("etag", "\"one\"")], config)];
    let server = HttpServer::start(&answers).await;
    let beside = alpha(&mut stage, "web", json!({ "url": server.url("/ada/adapter_model.safetensors").to_string() })).await;
    assert_eq!(content(&beside), config.as_bytes());
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/ada/adapter_model.safetensors", "/ada/adapter_config.json"]);

    server.script(&[Answer::with(200, &[], &saved_by_peft()), Answer::status(404)]);
    let url = server.url("/eve/adapter_model.safetensors").to_string();
    assert_eq!(alpha(&mut stage, "web-alone", json!({ "url": url })).await, AlphaSource::File);
    server.script(&[Answer::with(200, &[], &saved_by_peft())]);
    let before = server.requests().len();
    let signed = server.url("/ada/adapter_model.safetensors?token=abc").to_string();
    assert_eq!(alpha(&mut stage, "web-signed", json!({ "url": signed })).await, AlphaSource::File);
    assert_eq!(server.requests().len(), before + 1, "the signature is for one file alone");
}
