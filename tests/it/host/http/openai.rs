//! OpenAI's images API: what becomes of its parameters, and the shape of its answers and errors.

use std::sync::Arc;

use atelier::host::http::{Http, ModelInfo};
use atelier::host::job_service::{Direct, Ending, Model, ModelStatus};
use atelier::job::Job;
use atelier::job::request::Defaults;
use atelier::job::request::catalogue::{Catalogue, Served};
use atelier::job::task::{Generate, ModelName, Task};
use atelier::protocol::report::Preview;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Rgba, RgbaImage};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::tryon::Form;
use super::{Front, contract, idle, json_of, png, read};
use crate::servers::DEADLINE;

const GENERATIONS: &str = "/v1/images/generations";
pub(super) const EDITS: &str = "/v1/images/edits";

async fn next(front: &mut Front) -> Direct {
    tokio::time::timeout(DEADLINE, front.directs.recv()).await.expect("a job comes").unwrap()
}

pub(super) fn task(job: &Job) -> &Generate {
    let Task::Generate(generate) = &job.task else { panic!("{:?}", job.task) };
    generate
}

/// Sends a request, answers for the handler, and gives the job it got and the response.
pub(super) async fn run(
    front: &mut Front,
    sending: impl Future<Output = reqwest::Result<Response>> + Send + 'static,
) -> (Job, Response) {
    let waiting = tokio::spawn(sending);
    let direct = next(front).await;
    let reply = front.reply_of(&direct).await;
    let job = Job::clone(&direct.job);
    direct.answer.send(Ending::Answer(reply)).unwrap();
    (job, waiting.await.unwrap().unwrap())
}

async fn generated(front: &mut Front, body: &Value) -> (Job, Value) {
    let request = front.request(Method::POST, GENERATIONS).json(body);
    let (job, response) = run(front, request.send()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-job-id"], job.id.as_str());
    (job, json_of(response).await)
}

/// Refused with this status; in OpenAI's shape, and nothing else.
async fn refused(front: &Front, path: &str, body: &Value, status: u16, param: &str, says: &str) {
    let (got, body) = read(front.request(Method::POST, path).json(body)).await;
    assert_eq!(got.as_u16(), status, "{body}");
    assert_says(&body, param, says);
}

#[track_caller]
pub(super) fn assert_says(body: &Value, param: &str, says: &str) {
    assert_eq!(body["error"]["param"], param, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(says), "{body}");
    let mut members: Vec<&str> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["code", "message", "param", "type"], "{body}");
}

#[tokio::test]
async fn parameters_become_fields_of_a_job() {
    let mut front = Front::open().await;
    let body = json!({
        "model": "tiny-sd", "prompt": "a mug", "n": 2, "size": "64x128", "quality": "low", "output_format": "webp",
        "user": "u-1", "moderation": "low", "background": "auto", "style": null, "no_such_parameter": [1],
        "negative_prompt": "blur", "seed": 7,
    });
    let (job, answer) = generated(&mut front, &body).await;
    let generate = task(&job);
    assert_eq!((generate.prompt.as_str(), generate.negative_prompt.as_str()), ("a mug", "blur"));
    assert_eq!((generate.size.width_px(), generate.size.height_px()), (64, 128));
    assert_eq!((generate.num_images.get(), generate.seed.get()), (2, 7));
    assert_eq!(job.tenant.as_deref(), Some("u-1"));
    assert_eq!(generate.steps.get(), contract().steps.get().div_ceil(2));
    assert_eq!(STANDARD.decode(answer["data"][0]["b64_json"].as_str().unwrap()).unwrap(), png());
    assert_eq!((&answer["size"], &answer["output_format"], &answer["quality"]), (&json!("8x8"), &json!("webp"), &json!("low")));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);

    // The model's own number of steps, one and a half of it, and the caller's.
    let own = contract().steps.get();
    for (more, steps) in
        [(json!({}), own), (json!({ "quality": "hd" }), own + own / 2), (json!({ "quality": "low", "steps": 3 }), 3)]
    {
        let mut body = json!({ "prompt": "a mug", "size": "auto", "response_format": "url" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (job, answer) = generated(&mut front, &body).await;
        assert_eq!(task(&job).steps.get(), steps, "{body}");
        assert_eq!(answer["data"], json!([{ "url": "https://cdn.example/0.png" }]));
    }
}

#[tokio::test]
async fn an_idempotency_key_is_one_job_and_no_key_is_another_each_time() {
    let mut front = Front::open().await;
    let body = json!({ "prompt": "a mug" });
    let mut jobs = Vec::new();
    for key in [None, None, Some("order-1"), Some("order-1"), Some("order-2")] {
        let request = front.request(Method::POST, GENERATIONS).json(&body);
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        jobs.push(run(&mut front, request.send()).await.0);
    }
    assert!(jobs[0].id != jobs[1].id && task(&jobs[0]).seed != task(&jobs[1]).seed, "another image each time");
    assert!(jobs[2].id == jobs[3].id && jobs[2].fingerprint == jobs[3].fingerprint, "one order, one image");
    assert!(jobs[3].id != jobs[4].id);
}

#[tokio::test]
async fn what_is_wrong_is_said_in_openais_shape_by_openais_names() {
    let front = Front::open().await;
    for (more, status, param, says) in [
        (json!({ "prompt": null }), 400, "prompt", "is required"),
        (json!({ "size": "100x100" }), 400, "size", "multiple of 8"),
        (json!({ "size": "large" }), 400, "size", "such as 512x512"),
        (json!({ "size": "4294967296x64" }), 400, "size", "512x512"),
        (json!({ "n": 5 }), 400, "n", "from 1 to 4"),
        (json!({ "n": "two" }), 400, "n", "\"two\""),
        (json!({ "quality": "best" }), 400, "quality", "auto, low"),
        (json!({ "response_format": "jpg" }), 400, "response_format", "b64_json or url"),
        (json!({ "output_format": "gif" }), 400, "output_format", "png, jpeg or webp"),
        (json!({ "background": "transparent" }), 400, "background", "opaque"),
        (json!({ "partial_images": 4 }), 400, "partial_images", "0 to 3"),
        (json!({ "stream": "yes" }), 400, "stream", "true or false"),
        (json!({ "model": "gpt-image-1" }), 404, "model", "\"tiny-sd\""),
        (json!({ "seed": -2 }), 400, "seed", "got -2"),
        (json!({ "output": 7 }), 400, "output", "7"),
        (json!({ "output": { "format": "gif" } }), 400, "output_format", "png, jpeg or webp"),
    ] {
        let mut body = json!({ "prompt": "a mug" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refused(&front, GENERATIONS, &body, status, param, says).await;
    }
    refused(&front, GENERATIONS, &json!([1]), 400, "body", "a JSON object").await;
    let twice = r#"{"prompt": "a mug", "prompt": "a cup"}"#;
    let (status, body) =
        read(front.request(Method::POST, GENERATIONS).header("content-type", "application/json").body(twice)).await;
    assert_eq!((status, &body["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("prompt")), "{body}");

    let (status, body) = read(front.anonymous(Method::POST, GENERATIONS).bearer_auth("wrong").json(&json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (StatusCode::UNAUTHORIZED, &json!("authentication_error")), "{body}");
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 0);
    let response = front.request(Method::POST, GENERATIONS).json(&json!({ "prompt": "a mug" })).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"), "clients wait so long");
    let status = response.status();
    let body = json_of(response).await;
    assert_eq!((status, &body["error"]["type"]), (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limit_error")), "{body}");
}

#[tokio::test]
async fn models_are_listed() {
    let front = Front::open().await;
    let model = json!({ "id": "tiny-sd", "object": "model", "created": 0, "owned_by": "atelier" });
    assert_eq!(front.get("/v1/models").await, (StatusCode::OK, json!({ "object": "list", "data": [model] })));
    assert_eq!(front.get("/v1/models/tiny-sd").await, (StatusCode::OK, model));
    let (status, body) = front.get("/v1/models/sdxl").await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
}

/// A model that does try-ons and edits, and two that generate.
fn three_models(http: &mut Http) {
    let served = |name: &str, tasks: &'static [&'static str], steps: u32| {
        let name = ModelName::new(name).unwrap();
        let steps = serde_json::from_value(json!(steps)).unwrap();
        Served { name: name.clone(), tasks, defaults: Defaults { model: name, steps, ..contract() } }
    };
    let more = vec![served("small", &["generate"], 20), served("large", &["generate"], 40)];
    let catalogue = Catalogue::new(served("edits", &["tryon", "edit"], 4), more);
    let infos = catalogue.models().map(|model| ModelInfo { model_version: model.name.as_str().into(), ..http.model.clone() });
    http.models = infos.collect();
    http.job_service.catalogue = Arc::new(catalogue);
}

#[tokio::test]
async fn a_request_goes_to_the_model_it_names_or_the_first_that_generates() {
    let mut front = Front::open_with(three_models).await;
    let ready = ModelStatus { model: Model::Hot, free: 1 };
    front.snapshot.send_modify(|snapshot| snapshot.models = vec![ready.clone(), ready.clone(), ready]);
    let cases = [
        (json!({ "prompt": "x", "quality": "low" }), "small", 10),
        (json!({ "prompt": "x", "quality": "low", "model": "" }), "small", 10),
        (json!({ "prompt": "x", "quality": "high", "model": "large" }), "large", 60),
        (json!({ "prompt": "x", "model": "large" }), "large", 40),
    ];
    for (body, model, steps) in cases {
        let (job, _) = generated(&mut front, &body).await;
        assert_eq!((task(&job).model.as_str(), task(&job).steps.get()), (model, steps), "{body}");
    }
    let says = "\"edits\", \"small\", \"large\" (GET /v1/models), of which a request without a model gets the first";
    refused(&front, GENERATIONS, &json!({ "prompt": "x", "model": "other" }), 404, "model", says).await;
    let (_, listed) = front.get("/v1/models").await;
    let ids: Vec<&Value> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["edits", "small", "large"]);
    assert_eq!(front.get("/v1/models/large").await.1["id"], "large");
}

pub(super) fn png_of(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

pub(super) fn image_of_64x32() -> Vec<u8> {
    png_of(RgbaImage::new(64, 32))
}

/// An image of 64x32, and a mask whose left half is transparent.
pub(super) fn with_mask() -> Form {
    let mask = RgbaImage::from_fn(64, 32, |x, _| Rgba([9, 9, 9, if x < 32 { 0 } else { 255 }]));
    Form::default().file("image", &image_of_64x32()).file("mask", &png_of(mask)).text("prompt", "a mug")
}

#[tokio::test]
async fn a_transparent_mask_is_a_white_one() {
    let mut front = Front::open().await;
    let form = with_mask().text("seed", "7").text("n", "2").text("extra", "ignored").text("input_fidelity", "high");
    let request = front.request(Method::POST, EDITS);
    let (job, response) = run(&mut front, form.send(request)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let generate = task(&job);
    assert_eq!((generate.seed.get(), generate.num_images.get()), (7, 2));
    let start = generate.start.as_ref().unwrap();
    // The image's shape, 2 to 1, with about as many pixels as the model's own size.
    let own = contract();
    let width = f64::from(generate.size.width_px());
    let height = f64::from(generate.size.height_px());
    let pixels = f64::from(own.width.get() * own.height.get());
    assert!((1.9..2.1).contains(&(width / height)) && (0.9..1.1).contains(&(width * height / pixels)));
    let key =
        start.mask.as_ref().unwrap().to_string().split_once("/inputs/").map(|(_, rest)| format!("inputs/{rest}")).unwrap();
    let mask: GrayImage = image::open(front.bucket.path(&key)).unwrap().into_luma8();
    assert!(mask.enumerate_pixels().all(|(x, _, pixel)| pixel.0[0] == if x < 32 { 255 } else { 0 }));
}

#[tokio::test]
async fn an_edits_images_are_looked_at_before_anything_is_promised() {
    let front = Front::open().await;
    let image = || Form::default().file("image", &image_of_64x32());
    let masked = |mask: DynamicImage| image().file("mask", &png_of(mask));
    let opaque = RgbaImage::from_pixel(64, 32, Rgba([0, 0, 0, 255]));
    let two = Form::default().file("image[]", &png()).file("image[]", &png());
    for (form, param, says) in [
        (Form::default(), "image", "is required"),
        (image().text("size", "64x64").text("size", "128x128"), "size", "comes twice"),
        (two, "image", "one image"),
        (Form::default().file("image", b"no image"), "image", "PNG"),
        (masked(GrayImage::new(64, 32).into()), "mask", "alpha channel"),
        (masked(RgbaImage::new(32, 32).into()), "mask", "64x32, got 32x32"),
        (masked(opaque.into()), "mask", "transparent somewhere"),
    ] {
        let response = form.text("prompt", "a mug").send(front.request(Method::POST, EDITS)).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_says(&json_of(response).await, param, says);
    }
    let response = image().send(front.request(Method::POST, EDITS)).await.unwrap();
    assert_says(&json_of(response).await, "prompt", "is required");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_their_shape() {
    let front = Front::open().await;
    for (method, path, status, says) in [
        (Method::POST, "/v1/images/variations", 404, "there is nothing at /v1/images/variations"),
        (Method::GET, GENERATIONS, 405, "does not take GET"),
        (Method::DELETE, "/v1/models", 405, "does not take DELETE"),
    ] {
        let response = front.request(method, path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        let body = json_of(response).await;
        assert_eq!(
            (&body["error"]["type"], &body["error"]["param"]),
            (&json!("invalid_request_error"), &Value::Null),
            "{body}"
        );
        assert!(body["error"]["message"].as_str().unwrap().contains(says), "{body}");
    }
    // Beside it, our own shape.
    let (_, body) = front.get("/v2").await;
    assert!(body["error"].get("type").is_none(), "{body}");
}

/// The names and bodies of a stream's events.
fn events(text: &str) -> Vec<(String, Value)> {
    let events = text.split("\n\n").filter(|event| event.contains("data:"));
    let line = |event: &str, name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    events.map(|event| (line(event, "event:"), serde_json::from_str(&line(event, "data:")).unwrap())).collect()
}

#[tokio::test]
async fn a_stream_ends_with_the_image() {
    let mut front = Front::open().await;
    let request =
        front.request(Method::POST, GENERATIONS).json(&json!({ "prompt": "a mug", "stream": true, "partial_images": 2 }));
    let (_, response) = run(&mut front, request.send()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let [(name, body)] = events(&text).try_into().unwrap();
    assert_eq!((name.as_str(), &body["type"]), ("image_generation.completed", &json!("image_generation.completed")));
    assert_eq!(STANDARD.decode(body["b64_json"].as_str().unwrap()).unwrap(), png());

    let form = with_mask().text("stream", "true");
    let request = front.request(Method::POST, EDITS);
    let (_, response) = run(&mut front, form.send(request)).await;
    let [(name, _)] = events(&response.text().await.unwrap()).try_into().unwrap();
    assert_eq!(name, "image_edit.completed");
}

#[tokio::test]
async fn a_stream_with_partial_images_shows_them_while_the_job_runs() {
    let mut front = Front::open().await;
    let body = json!({ "prompt": "a mug", "stream": true, "partial_images": 2 });
    let waiting = tokio::spawn(front.request(Method::POST, GENERATIONS).json(&body).send());
    let direct = next(&mut front).await;
    let mut response = waiting.await.unwrap().unwrap();
    let id = response.headers()["x-job-id"].to_str().unwrap().to_owned();
    let mut text = String::new();
    // Of twenty steps a third and two thirds; what comes in between, and behind the last, is not sent.
    for (step, sent) in [(1, 0), (7, 1), (8, 1), (15, 2), (19, 2)] {
        let preview = Preview { step, steps: 20, width_px: 64, height_px: 48, image: format!("preview {step}") };
        front.jobs.previews.show(&id, preview);
        while events(&text).len() < sent {
            text.push_str(str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        }
    }
    direct.answer.send(Ending::Crashed("signal 9".into())).unwrap();
    text.push_str(&response.text().await.unwrap());
    let [(first, one), (second, other), (last, _)] = events(&text).try_into().unwrap();
    assert_eq!(
        [first.as_str(), second.as_str(), last.as_str()],
        ["image_generation.partial_image", "image_generation.partial_image", "error"]
    );
    assert_eq!([&one["b64_json"], &other["b64_json"]], ["preview 7", "preview 15"]);
    assert_eq!([&one["partial_image_index"], &other["partial_image_index"]], [0, 1]);
    let described =
        json!({ "type": first, "size": "64x48", "output_format": "jpeg", "background": "opaque", "quality": "medium" });
    for (name, value) in described.as_object().unwrap() {
        assert_eq!(one[name], *value, "{name}");
    }
    assert!(one["created_at"].is_u64());
}

#[tokio::test]
async fn a_stream_says_what_went_wrong_and_its_caller_may_go() {
    let mut front = Front::open().await;
    let body = json!({ "prompt": "a mug", "stream": true });
    let waiting = tokio::spawn(front.request(Method::POST, GENERATIONS).json(&body).send());
    let direct = next(&mut front).await;
    // The answer's head is there while the job runs.
    let response = waiting.await.unwrap().unwrap();
    direct.answer.send(Ending::Crashed("signal 9".into())).unwrap();
    let [(name, body)] = events(&response.text().await.unwrap()).try_into().unwrap();
    assert_eq!((name.as_str(), &body["error"]["type"]), ("error", &json!("server_error")), "{body}");

    front.snapshot.send_replace(idle());
    let waiting =
        tokio::spawn(front.request(Method::POST, GENERATIONS).json(&json!({ "prompt": "a cup", "stream": true })).send());
    let mut direct = next(&mut front).await;
    drop(waiting.await.unwrap().unwrap());
    tokio::time::timeout(DEADLINE, direct.answer.closed()).await.expect("the job is cancelled");
}
