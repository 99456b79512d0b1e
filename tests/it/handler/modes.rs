//! Images from text by a model with modes: what reaches the engine, and what such a model, or one without modes, refuses by name.

use atelier::job::capabilities::{Capabilities, ControlNet, Steering};
use atelier::job::task::control::NetName;
use atelier::job::task::tryon::Mode;
use serde_json::{Value, json};

use super::{body, brought_back, one};
use crate::stage::Stage;

fn with(id: &str, changes: &[(&str, Value)]) -> Value {
    let mut body = body(id);
    body["scheduler"] = json!("euler");
    for (field, value) in changes {
        body[*field] = value.clone();
    }
    body
}

fn control() -> Value {
    json!([{ "name": "canny", "image": { "url": "https://files.example/a.png" } }])
}

fn prompt() -> Value {
    json!([{ "name": "plus", "images": ["https://files.example/a.png"] }])
}

async fn refused(stage: &mut Stage, body: Value, field: &str, says: &str) {
    assert_eq!(stage.handle(one(body, 1)).await, Ok(brought_back(&[])), "{field}: nothing is retried");
    let notified = stage.backend.terminal().await;
    let error = &notified.body["error"];
    assert_eq!((notified.path.ends_with("/failed"), &error["field"]), (true, &json!(field)), "{}", notified.body);
    assert!(error["message"].as_str().unwrap().contains(says), "{error} does not say {says:?}");
}

#[tokio::test]
async fn a_model_of_one_sampler_refuses_what_it_does_not_read() {
    let mut stage = Stage::with(Capabilities::Text(vec![Mode::Base, Mode::Lora]), |_| ()).await;
    let lora = json!([{ "url": "https://files.example/a.safetensors" }]);
    let image = json!({ "url": "https://files.example/a.png" });
    let cases = [
        (with("a", &[("scheduler", json!("dpmsolver++"))]), "scheduler", "must be euler"),
        (with("b", &[("scheduler", json!("euler-karras"))]), "scheduler", "must be euler"),
        (with("c", &[("lora", lora)]), "lora", "is not read by this function's model"),
        (with("d", &[("init_image", image)]), "init_image", "is not read by this function's model"),
        (with("j", &[("controlnets", control())]), "controlnets", "is not read by this function's model"),
        (with("k", &[("ip_adapters", prompt())]), "ip_adapters", "is not read by this function's model"),
        (with("e", &[("clip_skip", json!(1))]), "clip_skip", "is not read by this function's model"),
        (with("f", &[("sigmas", json!([1.0, 0.0])), ("steps", json!(1))]), "sigmas", "is not read"),
        (with("g", &[("width", json!(72))]), "width", "must be a multiple of 16"),
        (with("h", &[("mode", json!("fp8"))]), "mode", "must be base, lora"),
        (json!({ "job_id": "i", "task": "edit", "prompt": "x", "images": ["s3://b/i"] }), "task", "does generate and not edit"),
    ];
    for (body, field, says) in cases {
        refused(&mut stage, body, field, says).await;
    }
    assert_eq!(stage.generated(), 0);
    assert_eq!(stage.handle(one(with("good", &[("mode", json!("lora"))]), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
    assert_eq!(stage.modes(), [Some("lora".to_owned())]);
}

#[tokio::test]
async fn a_model_without_modes_says_so() {
    let mut stage = Stage::set().await;
    refused(&mut stage, with("a", &[("mode", json!("base"))]), "mode", "means something only with a model that has modes")
        .await;
    assert_eq!(stage.generated(), 0);
}

/// A flow without modes takes LoRAs, and no guidance.
#[tokio::test]
async fn a_model_without_guidance_refuses_it_and_takes_loras() {
    let mut stage = Stage::with(Capabilities::Flow, |_| ()).await;
    let image = json!({ "url": "https://files.example/a.png" });
    let flow = |id: &str, changes: &[(&str, Value)]| {
        let mut body = with(id, changes);
        body["guidance_scale"] =
            changes.iter().find(|(field, _)| *field == "guidance_scale").map_or(json!(1), |change| change.1.clone());
        body
    };
    let cases = [
        (flow("a", &[("guidance_scale", json!(3.5))]), "guidance_scale", "must be at most 1"),
        (flow("b", &[("scheduler", json!("ddim"))]), "scheduler", "must be euler"),
        (flow("h", &[("controlnets", control())]), "controlnets", "is not read by this function's model"),
        (flow("i", &[("ip_adapters", prompt())]), "ip_adapters", "is not read by this function's model"),
        (flow("d", &[("height", json!(72))]), "height", "must be a multiple of 16"),
        (flow("e", &[("mode", json!("base"))]), "mode", "means something only with a model that has modes"),
        (flow("f", &[("guidance_rescale", json!(0.5))]), "guidance_rescale", "is not read"),
    ];
    for (body, field, says) in cases {
        refused(&mut stage, body, field, says).await;
    }
    assert_eq!(stage.generated(), 0);
    let mut editing = Stage::with(Capabilities::EditFlow, |_| ()).await;
    for fields in [&[("init_image", image.clone())][..], &[("init_image", image.clone()), ("mask_image", image)]] {
        let body = flow(&format!("c{}", fields.len()), fields);
        refused(&mut editing, body, "init_image", "is not read by this function's model").await;
    }
    assert_eq!(editing.generated(), 0);
    assert_eq!(stage.handle(one(flow("good", &[("guidance_scale", json!(0))]), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
}

/// A UNet takes over what lies deep in it, a transformer what its blocks add.
#[tokio::test]
async fn each_kind_of_model_refuses_the_step_cache_of_the_other() {
    let canny = NetName::new("canny").unwrap();
    let controlnets = vec![ControlNet { name: canny.clone(), image: canny }];
    let controlled = Capabilities::Steered(Steering { controlnets, ip_adapters: vec![] });
    let interval = json!({ "interval": 2 });
    let threshold = json!({ "threshold": 0.1 });
    let cases = [
        (Capabilities::Generate, &threshold, "must have interval"),
        (controlled, &threshold, "must have interval"),
        (Capabilities::Flow, &interval, "must have threshold"),
        (Capabilities::Text(vec![Mode::Base]), &interval, "must have threshold"),
    ];
    for (capabilities, step_cache, says) in cases {
        let mut stage = Stage::with(capabilities, |_| ()).await;
        let body = with("a", &[("step_cache", step_cache.clone()), ("guidance_scale", json!(1))]);
        refused(&mut stage, body, "step_cache", says).await;
        assert_eq!(stage.generated(), 0);
    }
}
