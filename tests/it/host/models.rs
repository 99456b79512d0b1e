//! Two bundled models behind one host: who gets which job, who is refused, and what a dead or busy handler of one means to the other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use reqwest::{Client, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{HostProcess, eventually, job, signal};
use crate::servers::rabbitmq;
use crate::stage::TOKEN;

const BOTH: (&str, &str) = ("ATELIER__HOST__MODELS", "[{name: tiny-sd, handlers: 1}, {name: tiny-edit}]");

async fn start(changes: &[(&str, &str)]) -> HostProcess {
    start_with(&[&[BOTH], changes].concat()).await
}

pub(super) async fn start_with(changes: &[(&str, &str)]) -> HostProcess {
    let host = HostProcess::start(changes, &[]).await;
    std::fs::create_dir_all(host.bucket.path("images")).unwrap();
    for name in ["person", "garment"] {
        let from = format!("{}/events/images/{name}.png", env!("CARGO_MANIFEST_DIR"));
        std::fs::copy(from, host.bucket.path(&format!("images/{name}.png"))).unwrap();
    }
    host
}

fn image(name: &str) -> String {
    format!("s3://{}/images/{name}.png", atelier::demo::local::BUCKET)
}

pub(super) fn edit(id: &str) -> Value {
    let images = [image("person"), image("garment")];
    json!({ "job_id": id, "task": "edit", "prompt": "x", "images": images, "width": 64, "height": 64, "steps": 2 })
}

fn tryon(id: &str) -> Value {
    json!({ "job_id": id, "task": "tryon", "person": image("person"), "garments": [image("garment")], "steps": 1 })
}

/// Waits for the end of so many jobs, each by the model that is right for it.
pub(super) async fn complete(host: &mut HostProcess, mut expected: Vec<(&str, &str)>) {
    while !expected.is_empty() {
        let told = host.backend.terminal().await;
        assert!(told.path.ends_with("/complete"), "{}", told.body);
        let id = told.body["job_id"].as_str().unwrap();
        let record = host.bucket.path(&format!("generations/{id}/result.json"));
        let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let place = expected.iter().position(|(job, model)| *job == id && record["model"] == *model);
        expected.swap_remove(place.unwrap_or_else(|| panic!("{id} of {expected:?}: {record}")));
    }
}

/// The process of a handler that was started last in this place.
pub(super) fn handler(host: &HostProcess, place: u64) -> u32 {
    let mut started = host.logged("a handler was started").into_iter().filter(|line| line["handler"] == place);
    u32::try_from(started.next_back().unwrap()["pid"].as_u64().unwrap()).unwrap()
}

/// What the bundled segmenter finds.
const MASK_CLASSES: [&str; 10] =
    ["Background", "Hair", "Face", "Upper-clothes", "Dress", "Pants", "Left-leg", "Right-leg", "Left-arm", "Right-arm"];

async fn by_openais_api(host: &HostProcess, client: &Client) {
    let generations = client.post(format!("http://{}/v1/images/generations", host.address())).bearer_auth(TOKEN);
    let answer = generations.try_clone().unwrap().json(&json!({ "model": "tiny-edit", "prompt": "x" })).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["param"], "model");
    let body = json!({ "model": "tiny-sd", "prompt": "x", "size": "64x64", "steps": 1 });
    assert_eq!(generations.json(&body).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn http_jobs_go_to_the_model_that_does_their_task() {
    let mut host = start(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    let listed: Value = serde_json::from_str(&host.get("/models").await).unwrap();
    assert_eq!(
        listed["models"],
        json!([
            { "name": "tiny-sd", "model_type": "stable-diffusion-1", "backend": "candle", "tasks": ["generate"],
              "modes": [], "loras": true, "controlnets": [], "ip_adapters": [], "upscalers": [], "mask_classes": [], "guidance": true, "side_multiple_px": 8,
              "defaults": { "steps": 20, "guidance_scale": 4.0, "scheduler": "dpmsolver++", "width": 128, "height": 128, "seed": 42 },
              "status": "hot", "model_loaded": true },
            { "name": "tiny-edit", "model_type": "qwen-image-edit", "backend": "candle", "tasks": ["tryon", "edit"],
              "modes": ["fp8"], "loras": false, "controlnets": [], "ip_adapters": [], "upscalers": [], "mask_classes": MASK_CLASSES, "guidance": true, "side_multiple_px": 16,
              "status": "hot", "model_loaded": true },
        ])
    );
    let ready: Value = serde_json::from_str(&host.get("/test").await).unwrap();
    assert_eq!((&ready["status"], &ready["model_type"]), (&json!("hot"), &json!("stable-diffusion-1")));
    assert_eq!(ready["models"].as_array().map(Vec::len), Some(2), "{ready}");

    let data =
        format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(host.bucket.path("images/person.png")).unwrap()));
    let mut written_out = edit("edit");
    written_out["images"] = json!([data, image("garment")]);
    let mut named = job("named");
    named["model"] = json!("tiny-sd");
    host.post("/generate", &job("text")).await;
    host.post("/edit", &written_out).await;
    host.post("/generate", &named).await;
    host.post("/tryon", &tryon("worn")).await;
    complete(&mut host, vec![("text", "tiny-sd"), ("edit", "tiny-edit"), ("named", "tiny-sd"), ("worn", "tiny-edit")]).await;

    let client = Client::builder().no_proxy().build().unwrap();
    let mut unknown = job("unknown");
    unknown["model"] = json!("sdxl");
    let mut other = edit("other");
    other["model"] = json!("tiny-sd");
    for (path, body, says) in [
        ("/generate", unknown, "must be one that does generate: tiny-sd (generate); got \"sdxl\""),
        ("/edit", other, "must be one that does edit: tiny-edit (tryon, edit); got \"tiny-sd\""),
    ] {
        let asked = client.post(format!("http://{}{path}", host.address())).header("x-internal-auth", TOKEN);
        let answer = asked.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["field"], "model", "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
    }
    by_openais_api(&host, &client).await;
    let infer = client.post(format!("http://{}/infer", host.address())).header("x-internal-auth", TOKEN);
    let answer = infer.json(&edit("now")).send().await.unwrap();
    assert_eq!((answer.status(), &answer.headers()["content-type"]), (StatusCode::OK, &"image/png".parse().unwrap()));
    let metrics = host.get("/metrics").await;
    for line in [
        "atelier_model_handlers{model=\"tiny-edit\",state=\"idle\"} 1",
        "atelier_model_jobs_total{model=\"tiny-sd\"} 3",
        "atelier_model_jobs_total{model=\"tiny-edit\"} 3",
        "atelier_handlers{state=\"idle\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_killed_handler_of_one_model_leaves_the_other_serving() {
    let mut host = start(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    // It neither works nor ends until it is killed.
    let edits = handler(&host, 1);
    signal(Signal::STOP, edits);
    host.post("/edit", &edit("edit")).await;
    host.post("/generate", &job("text-1")).await;
    complete(&mut host, vec![("text-1", "tiny-sd")]).await;
    signal(Signal::KILL, edits);
    host.wait_for("a handler ended; another is started after a pause", 1).await;
    host.post("/generate", &job("text-2")).await;
    complete(&mut host, vec![("text-2", "tiny-sd"), ("edit", "tiny-edit")]).await;
}

#[tokio::test]
async fn jobs_for_a_busy_model_do_not_keep_others_from_an_idle_one() {
    let mut host = start(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    // As one that works for long.
    let edits = handler(&host, 1);
    signal(Signal::STOP, edits);
    for number in 0..6 {
        host.post("/edit", &edit(&format!("edit-{number}"))).await;
    }
    host.post("/generate", &job("text")).await;
    complete(&mut host, vec![("text", "tiny-sd")]).await;
    signal(Signal::CONT, edits);
    eventually("every job is stored", || host.bucket.puts("/result.json") == 7).await.unwrap();
    let metrics = host.get("/metrics").await;
    let put_off =
        metrics.lines().find(|line| line.starts_with("atelier_deferred_total{reason=\"model_busy\",source=\"spool\"}"));
    assert!(put_off.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
}

#[tokio::test]
async fn messages_of_a_broker_go_to_the_model_that_does_their_task() {
    let Some(node) = rabbitmq::shared_or_skip("two models behind RabbitMQ").await else { return };
    let queue = format!("models-{}", std::process::id());
    let port = node.port.to_string();
    let mut host = start(&[
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", &port),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", &queue),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
    ])
    .await;
    host.wait_for("a handler is ready", 2).await;
    let (_connection, channel) = node.peer().await;
    let mut nobody = job("nobody");
    nobody["model"] = json!("sdxl");
    for body in [edit("edit"), tryon("worn"), job("text"), edit("edit-2"), nobody] {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let body = body.to_string();
        let sent = channel.basic_publish("".into(), queue.as_str().into(), options, body.as_bytes(), properties);
        sent.await.unwrap().await.unwrap();
    }
    let mut ended = Vec::new();
    for _ in 0..5 {
        let told = host.backend.terminal().await;
        let id = told.body["job_id"].as_str().unwrap().to_owned();
        let record = host.bucket.path(&format!("generations/{id}/result.json"));
        let record = std::fs::read(record).ok().map(|record| serde_json::from_slice::<Value>(&record).unwrap());
        let field = told.body["error"]["field"].as_str().map(str::to_owned);
        ended.push((id, record.map(|record| record["model"].as_str().unwrap().to_owned()), field));
    }
    ended.sort();
    let expected = [
        ("edit", Some("tiny-edit"), None),
        ("edit-2", Some("tiny-edit"), None),
        ("nobody", None, Some("model")),
        ("text", Some("tiny-sd"), None),
        ("worn", Some("tiny-edit"), None),
    ];
    let expected = expected.map(|(id, model, field)| (id.to_owned(), model.map(str::to_owned), field.map(str::to_owned)));
    assert_eq!(ended, expected);
}

/// One model never gets ready: it is told of by name, and keeps nobody from the other.
#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_named_and_the_other_serves() {
    let models = ("ATELIER__HOST__MODELS", "[{name: sd15}, {name: tiny-edit}]");
    let mut host = start_with(&[models]).await;
    host.wait_for("a handler is ready", 1).await;
    host.wait_for("a handler ended; another is started after a pause", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let test = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
    assert_eq!(test.status(), StatusCode::SERVICE_UNAVAILABLE);
    let test: Value = test.json().await.unwrap();
    assert_eq!((&test["status"], &test["model_loaded"]), (&json!("failed"), &json!(false)));
    assert!(test["reason"].as_str().unwrap().starts_with("sd15: "), "{test}");
    let states: Vec<&Value> = test["models"].as_array().unwrap().iter().map(|model| &model["status"]).collect();
    assert_eq!(states, ["failed", "hot"]);

    host.post("/edit", &edit("edit")).await;
    let generate = client.post(format!("http://{}/generate", host.address())).header("x-internal-auth", TOKEN);
    let answer = generate.json(&job("text")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "model_not_ready");
    complete(&mut host, vec![("edit", "tiny-edit")]).await;
    // What no model does needs no handler to be refused; what the missing one does waits, and keeps no other from its handler.
    let mut nobody = job("nobody");
    nobody["model"] = json!("tiny-sd");
    host.kill();
    host.spool("text", &job("text"));
    host.spool("nobody", &nobody);
    host.spool("edit-2", &edit("edit-2"));
    host.restart();
    // The first edit is reported once more where its message was not acknowledged before the host was killed.
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        let one = host.backend.terminal().await;
        if one.body["job_id"] != "edit" {
            told.insert(one.body["job_id"].to_string(), one);
        }
    }
    let [complete, failed] = &told.values().collect::<Vec<_>>()[..] else { panic!("two jobs") };
    assert!(complete.path.ends_with("/complete") && complete.body["job_id"] == "edit-2", "{}", complete.body);
    assert!(failed.path.ends_with("/failed"), "{}", failed.body);
    let error = &failed.body["error"];
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_request"), &json!("model")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("must be one that does generate: sd15 (generate)"), "{error}");
    let metrics = host.get("/metrics").await;
    assert!(metrics.contains("atelier_refused_total{outcome=\"failed\",source=\"spool\"} 1"), "{metrics}");
    assert!(!host.bucket.path("generations/text/result.json").exists());
}

/// A message that came again for a model that this host has no more: its record counts before the refusal.
#[tokio::test]
async fn a_job_that_is_done_is_reported_complete_though_no_model_does_it_any_more() {
    let mut host = start(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    host.post("/edit", &edit("edit")).await;
    complete(&mut host, vec![("edit", "tiny-edit")]).await;
    eventually("its message is settled", || host.spooled("running").is_empty()).await.unwrap();
    host.kill();
    host.change("ATELIER__HOST__MODELS", "[{name: tiny-sd}, {name: sd15}]");
    host.restart();
    let mut again = edit("edit");
    again["model"] = json!("tiny-edit");
    host.spool("edit", &again);
    let told = host.backend.terminal().await;
    assert!(told.path.ends_with("/complete"), "{}", told.body);
}

#[tokio::test]
async fn a_host_that_is_asked_to_end_drains_the_handlers_of_all_models() {
    let mut host = start(&[]).await;
    host.wait_for("a handler is ready", 2).await;
    // What is here and not begun goes back to its queue.
    for (path, id, mut body) in [("/generate", "text", job("text")), ("/edit", "edit", edit("edit"))] {
        body["steps"] = json!(60);
        host.post(path, &body).await;
        host.is_generating(id).await;
    }
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    complete(&mut host, vec![("text", "tiny-sd"), ("edit", "tiny-edit")]).await;
    for handler in host.handlers() {
        assert!(!super::is_alive(handler), "{handler} outlived its host");
    }
}

#[test]
fn a_list_that_contradicts_itself_is_refused_at_the_start() {
    let parsed = |yaml: &str| atelier::config::Config::parse("config.yaml", yaml, &atelier::config::Environment::new());
    for (yaml, says) in [
        ("host: {models: [{name: tiny-sd}, {name: tiny-sd}]}", "host.models: lists tiny-sd twice"),
        ("host: {handlers: 2, models: [{name: tiny-sd}]}", "host.handlers: must be 0 next to host.models"),
        ("host: {models: [{name: Tiny}]}", "must be 1 to 64 of the characters"),
        ("host: {models: [{name: tiny-sd, gpu: 1}]}", "gpu"),
        ("host: {models: [{name: tiny-sd, devices: ['0,1']}]}", "tiny-sd: a device must be one number or name"),
    ] {
        let error = parsed(yaml).expect_err("must be refused").to_string();
        assert!(error.contains(says), "{error} does not say {says:?}");
    }
    let listed = parsed("host: {models: [{name: tiny-sd, devices: [0, MIG-1]}, {name: tiny-edit}]}").unwrap().host.models;
    assert_eq!((listed[0].devices.clone(), listed[1].handlers), (vec!["0".to_owned(), "MIG-1".to_owned()], 0));
}

/// What the host says that does not start with these manifests.
pub(super) fn refused_start(manifests: &[(&str, String)], changes: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    for (name, manifest) in manifests {
        std::fs::write(directory.path().join(format!("{name}.yaml")), manifest).unwrap();
    }
    let host = std::process::Command::new(env!("CARGO_BIN_EXE_atelier"))
        .args(["host"])
        .env_clear()
        .env("ATELIER__MODEL__DIRECTORY", directory.path())
        .env("ATELIER__HOST__MODELS", "[{name: one}, {name: two, devices: [1]}]")
        .envs(changes.iter().copied())
        .current_dir(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&host.stderr).into_owned();
    assert!(!host.status.success(), "{said}");
    said
}

pub(super) fn manifest(name: &str, prefix: &str) -> String {
    format!(
        "family: stable-diffusion-1\ncheckpoint: {name}\ndefaults: {{model: {name}, steps: 1, guidance_scale: 1.0, \
         scheduler: ddim, width: 64, height: 64, seed: 1, prefix: {prefix}}}\n"
    )
}

#[test]
fn models_whose_jobs_lie_under_different_prefixes_are_refused() {
    let said = refused_start(&[("one", manifest("one", "generations/")), ("two", manifest("two", "other/"))], &[]);
    for words in ["two.yaml", "defaults.prefix", "must be", "as that of one"] {
        assert!(said.contains(words), "{said} does not say {words:?}");
    }
}

#[test]
fn a_wrong_or_missing_manifest_and_a_device_out_of_sight_are_named_at_the_start() {
    let one = ("one", manifest("one", "generations/"));
    let two = manifest("two", "generations/");
    let wrong = refused_start(&[one.clone(), ("two", two.replace("steps: 1,", "steps: 0,"))], &[]);
    assert!(wrong.contains("two.yaml") && wrong.contains("steps"), "{wrong}");
    let missing = refused_start(std::slice::from_ref(&one), &[]);
    assert!(missing.contains("no manifest of the model `two`"), "{missing}");
    let out_of_sight = refused_start(&[one, ("two", two)], &[("CUDA_VISIBLE_DEVICES", "0,2")]);
    assert!(out_of_sight.contains("host.models: two: 1 must be one of 0,2"), "{out_of_sight}");
}
