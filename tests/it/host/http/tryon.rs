//! `/tryon`: the form of the service this replaces, byte by byte, and its twins in JSON.

use atelier::job::Job;
use atelier::job::task::Task;
use atelier::job::url::AssetUrl;
use atelier::store::fetch::InputKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use image::ImageFormat;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{Front, assert_problem, image, png, read};
use crate::requests::contract;

const BOUNDARY: &str = "--------------------------boundary";

/// A multipart form as clients write it, and as they should not.
#[derive(Clone, Default)]
pub(super) struct Form {
    body: Vec<u8>,
}

impl Form {
    pub(super) fn text(mut self, name: &str, text: &str) -> Self {
        self.part(name, "", text.as_bytes());
        self
    }

    pub(super) fn file(mut self, name: &str, file: &[u8]) -> Self {
        self.part(name, "; filename=\"a.png\"\r\nContent-Type: image/png", file);
        self
    }

    fn part(&mut self, name: &str, more: &str, content: &[u8]) {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n");
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice(content);
        self.body.extend_from_slice(b"\r\n");
    }

    fn bytes(&self) -> Vec<u8> {
        [self.body.as_slice(), format!("--{BOUNDARY}--\r\n").as_bytes()].concat()
    }

    pub(super) async fn send(self, request: RequestBuilder) -> reqwest::Result<reqwest::Response> {
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        request.header("content-type", kind).body(self.bytes()).send().await
    }
}

/// What every client sends.
pub(super) fn form(id: &str, person: &[u8], garment: &[u8]) -> Form {
    Form::default().text("job_id", id).file("masked_user_image", person).file("garment_image", garment)
}

async fn send(front: &Front, form: Form) -> (StatusCode, Value) {
    let response = form.send(front.request(Method::POST, "/tryon")).await.unwrap();
    (response.status(), super::json_of(response).await)
}

fn queued(front: &Front) -> Job {
    let taken = front.shelf.taken();
    assert_eq!(taken.len(), 1, "{taken:?}");
    Job::from_json(taken[0].1.to_string().as_bytes(), &contract()).unwrap()
}

#[tokio::test]
async fn the_form_becomes_a_message_and_two_files_in_the_bucket() {
    let front = Front::open().await;
    let person = image(ImageFormat::Jpeg, 16);
    let garment = image(ImageFormat::WebP, 18);
    let form = form("job-1", &person, &garment)
        .text("user_id", "u-7")
        .text("session_id", "s-1")
        .text("provider", "shop")
        .text("auto_mask", r#"{"garment": "upper", "dilate_px": 2}"#)
        .text("config", r#"{"seed": 7, "steps": 8, "cfg": 2.5, "prompt": "a coat"}"#);
    let (status, body) = send(&front, form).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    assert_eq!(body, json!({ "status": "accepted", "job_id": "job-1", "message": "the job is in the queue" }));
    let job = queued(&front);
    let Task::TryOn(tryon) = &job.task else { panic!("no try-on") };
    assert_eq!((tryon.seed.get(), tryon.steps.get()), (7, 8));
    assert!((tryon.guidance_scale.get() - 2.5).abs() < f64::EPSILON);
    assert_eq!(tryon.prompt.as_ref().map(atelier::job::task::Prompt::as_str), Some("a coat"));
    assert_eq!(tryon.requester.user_id.as_deref(), Some("u-7"));
    assert_eq!(json!(tryon.auto_mask), json!({ "garment": "upper", "limbs": false, "dilate_px": 2 }));
    for (asset, what, extension, file) in
        [(&tryon.person, "person", "jpg", &person), (&tryon.garments.get()[0], "garment", "webp", &garment)]
    {
        let AssetUrl::S3 { bucket, key } = asset else { panic!("{asset}") };
        assert_eq!(bucket, front.store.bucket());
        assert!(key.starts_with(&format!("inputs/job-1/{what}-")) && key.ends_with(extension), "{key}");
        assert_eq!(&std::fs::read(front.bucket.path(key)).unwrap(), file);
        // The handler can read it, although input_buckets names other buckets only.
        let fetched = front.store.fetch(asset, InputKind::Image, "person", &job).await.unwrap();
        assert_eq!(&std::fs::read(fetched.path()).unwrap(), file);
    }
    let other = AssetUrl::parse(&format!("s3://{}/generations/a.png", front.store.bucket())).unwrap();
    assert!(
        front.store.fetch(&other, InputKind::Image, "person", &job).await.unwrap_err().to_string().contains("elsewhere"),
        "and nothing else there"
    );
}

#[tokio::test]
async fn what_config_leaves_out_has_the_contracts_defaults() {
    for config in ["{}", "", r#"{"seed": null, "prompt": null}"#] {
        let front = Front::open().await;
        let (status, body) = send(&front, form("job-1", &png(), &png()).text("config", config)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{config}: {body}");
        let Task::TryOn(tryon) = queued(&front).task else { panic!("no try-on") };
        assert_eq!((tryon.seed.get(), tryon.steps.get(), tryon.prompt), (42, 4, None), "{config}");
        assert!((tryon.guidance_scale.get() - 1.0).abs() < f64::EPSILON);
    }
}

#[tokio::test]
async fn another_image_under_the_same_id_is_another_request() {
    let front = Front::open().await;
    assert_eq!(send(&front, form("job-1", &png(), &png())).await.0, StatusCode::ACCEPTED);
    let again = send(&front, form("job-1", &png(), &png())).await;
    assert_eq!((again.0, &again.1["message"]), (StatusCode::ACCEPTED, &json!("the job is in the queue already")));
    let (status, body) = send(&front, form("job-1", &image(ImageFormat::Png, 17), &png())).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_problem(&body, "conflict", Some("job_id"), "job-1");
    queued(&front);
}

#[tokio::test]
async fn a_wrong_form_is_refused_by_the_name_of_its_field() {
    let front = Front::open_with(|http| {
        http.settings.max_image_pixels = 10_000;
    })
    .await;
    let good = || form("job-1", &png(), &png());
    let only = |names: &[&str]| {
        names.iter().fold(Form::default(), |form, name| match *name {
            "job_id" => form.text(name, "job-1"),
            name => form.file(name, &png()),
        })
    };
    let truncated = png()[..40].to_vec();
    let gif = b"GIF89a\x01\0\x01\0\0\0\0;".to_vec();
    let table = [
        (only(&["masked_user_image", "garment_image"]), "job_id", "is required"),
        (only(&["job_id", "garment_image"]), "masked_user_image", "is required"),
        (only(&["job_id", "masked_user_image"]), "garment_image", "is required"),
        (form("a/b", &png(), &png()), "job_id", "A-Z a-z 0-9"),
        (good().text("consent", "yes"), "consent", "must be an object, got \"yes\""),
        (good().text("consent", r#"["own", "me"]"#), "consent", "must be an object"),
        (good().text("auto_mask", "upper"), "auto_mask", "must be an object, got \"upper\""),
        (good().text("auto_mask", r#"{"garment": "arm"}"#), "auto_mask.garment", "must be one of upper, lower, full, shoes"),
        (good().text("colour", "red"), "colour", "allowed are job_id, masked_user_image, garment_image, config"),
        (good().text("steps", "4"), "steps", "is not a field of this form"),
        (good().text("job_id", "job-2"), "job_id", "comes twice"),
        (good().file("garment_image", &png()), "garment_image", "comes twice"),
        (good().file("user_id", b"\xff\xfe"), "user_id", "UTF-8"),
        (good().text("user_id", &"x".repeat(257)), "user_id", "at most 256"),
        (good().text("config", "seed=4"), "config", "must be a JSON object"),
        (good().text("config", "[4]"), "config", "must be a JSON object"),
        (good().text("config", r#"{"seeds": 4}"#), "config.seeds", "seed, steps, cfg, prompt"),
        (good().text("config", r#"{"steps": 0}"#), "config.steps", "from 1 to 200"),
        (good().text("config", r#"{"cfg": "high"}"#), "config.cfg", "from 1 to 50"),
        (good().text("config", r#"{"seed": -1}"#), "config.seed", "from 0 to"),
        (good().text("config", &json!({ "prompt": "x".repeat(2_001) }).to_string()), "config.prompt", "at most 2000"),
        (good().text("config", &"x".repeat(70_000)), "config", "at most 65536 bytes"),
        (form("job-1", b"just some text", &png()), "masked_user_image", "PNG, JPEG or WebP"),
        (form("job-1", &png(), b""), "garment_image", "PNG, JPEG or WebP"),
        (form("job-1", &gif, &png()), "masked_user_image", "image/gif"),
        (form("job-1", &truncated, &png()), "masked_user_image", "truncated or damaged"),
        (form("job-1", &png(), &image(ImageFormat::Png, 101)), "garment_image", "at most 10000 pixels, got 101 x 101"),
    ];
    for (form, field, says) in table {
        let (status, body) = send(&front, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {body}");
        assert_problem(&body, "invalid_request", Some(field), says);
    }
    assert!(front.shelf.taken().is_empty());
    assert!(!front.bucket.path("inputs").exists(), "nothing was kept");
}

#[tokio::test]
async fn a_broken_or_endless_form_is_refused() {
    let front = Front::open_with(|http| {
        http.settings.max_image_bytes = 1_000;
        http.settings.max_upload_bytes = 3_000;
    })
    .await;
    let post = async |kind: &str, body: Vec<u8>| {
        read(front.request(Method::POST, "/tryon").header("content-type", kind.to_owned()).body(body)).await
    };
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let whole = form("job-1", &png(), &png()).bytes();
    for cut in [0, 1, 30, 120, 200, whole.len() - 60, whole.len() - 6] {
        let (status, body) = post(&kind, whole[..cut].to_vec()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "cut at {cut}: {body}");
        assert_problem(&body, "invalid_request", Some("body"), "is no complete multipart form");
    }
    let (status, body) = post("multipart/form-data", whole.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&body, "invalid_request", Some("content-type"), "boundary");
    let (status, body) = send(&front, form("job-1", &[0; 1_001], &png())).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&body, "too_large", Some("masked_user_image"), "at most 1000 bytes");
    let (status, body) = send(&front, form("job-1", &[0; 900], &[0; 3_000])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&body, "too_large", None, "at most 3000 bytes");
    let chunks = futures::stream::iter(form("job-1", &png(), &png()).text("user_id", &"x".repeat(3_000)).bytes())
        .map(|byte| Ok::<_, std::io::Error>(vec![byte]));
    let request = front.request(Method::POST, "/tryon").header("content-type", &kind);
    let (status, body) = read(request.body(reqwest::Body::wrap_stream(chunks))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "without a length as well: {body}");
    assert!(front.shelf.taken().is_empty());
}

#[tokio::test]
async fn the_twin_of_the_form_has_addresses_where_the_images_would_be() {
    let front = Front::open().await;
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png()));
    let twin = json!({
        "job_id": "job-1", "user_id": "u-7", "masked_user_image": data, "garment_image": "https://shop.example/shirt.png",
        "config": { "seed": 7 },
    });
    let (status, body) = front.post("/tryon", &twin).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let Task::TryOn(tryon) = queued(&front).task else { panic!("no try-on") };
    assert_eq!((tryon.seed.get(), tryon.requester.user_id.as_deref()), (7, Some("u-7")));
    assert_eq!(tryon.garments.get()[0].to_string(), "https://shop.example/shirt.png");
    let AssetUrl::S3 { key, .. } = &tryon.person else { panic!("{}", tryon.person) };
    assert_eq!(std::fs::read(front.bucket.path(key)).unwrap(), png());
    for (field, value, named, says) in [
        ("masked_user_image", json!("data:image/png,plain"), "masked_user_image", "data:image/png;base64"),
        ("masked_user_image", json!("data:image/png;base64,AAAA"), "masked_user_image", "PNG, JPEG or WebP"),
        ("garment_image", json!("ftp://host/file"), "garment_image", "s3://BUCKET/KEY"),
        ("garment_image", json!(null), "garment_image", "must be an address"),
        ("config", json!({ "cfg": 0 }), "config.cfg", "from 1 to 50"),
        ("person", json!("s3://b/p"), "person", "is not a field of this form"),
    ] {
        let mut body = twin.clone();
        body["job_id"] = "job-2".into();
        body[field] = value;
        let (status, answer) = front.post("/tryon", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_problem(&answer, "invalid_request", Some(named), says);
    }
}

#[tokio::test]
async fn the_wire_form_is_taken_as_well() {
    let front = Front::open().await;
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png()));
    let wire = json!({
        "job_id": "job-1", "person": "s3://elsewhere/person.png", "garments": ["https://shop.example/shirt.png", data],
        "mask": data, "mode": "base", "output": { "prefix": "tryons/" },
    });
    let (status, body) = front.post("/tryon", &wire).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let job = queued(&front);
    let Task::TryOn(tryon) = &job.task else { panic!("no try-on") };
    assert_eq!((job.output.prefix.as_str(), tryon.steps.get()), ("tryons/", 40));
    let at = |asset: &AssetUrl| asset.to_string();
    assert!(at(&tryon.garments.get()[1]).contains("/inputs/job-1/garment-1-"), "{}", at(&tryon.garments.get()[1]));
    assert!(at(tryon.mask.as_ref().unwrap()).contains("/inputs/job-1/mask-"));
    for (change, field, says) in [
        (json!({ "task": "generate" }), "task", "POST a job of task generate to /generate"),
        (json!({ "garments": [] }), "garments", "1 to 4 addresses"),
        (json!({ "garments": ["data:nonsense"] }), "garments[0]", "base64"),
        (json!({ "job_id": null, "person": data }), "job_id", ""),
    ] {
        let mut body = wire.clone();
        body["job_id"] = "job-2".into();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (status, answer) = front.post("/tryon", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_problem(&answer, "invalid_request", Some(field), says);
    }
}

#[tokio::test]
async fn when_the_queue_is_full_or_the_store_away_nothing_is_left_behind() {
    let front = Front::open_with(|http| http.job_service.max_waiting = 0).await;
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 0);
    let (status, body) = send(&front, form("job-1", &png(), &png())).await;
    assert_eq!((status, &body["status"]), (StatusCode::TOO_MANY_REQUESTS, &json!("busy")));
    assert!(!front.bucket.path("inputs").exists());
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 1);
    front.bucket.refuse(true);
    let (status, body) = send(&front, form("job-1", &png(), &png())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_problem(&body, "storage_failed", None, "s3:PutObject");
    assert!(front.shelf.taken().is_empty());
    assert_eq!(front.get("/jobs/job-1").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn data_urls_are_taken_as_programs_write_them() {
    let file = png();
    let encoded = STANDARD.encode(&file);
    let lines: String = encoded.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned() + "\r\n").collect();
    let escaped = encoded.replace('+', "%2B").replace('/', "%2f").replace('=', "%3D");
    let for_urls = encoded.replace('+', "-").replace('/', "_");
    for (number, url) in [
        format!("data:image/png;base64,{lines}"),
        format!("DATA:image/png;BASE64,{encoded}"),
        format!("Data:;base64, {encoded}"),
        format!("data:image/png;base64,{}", encoded.trim_end_matches('=')),
        format!("data:image/png;charset=utf-8;base64,{escaped}"),
        format!("data:image/png;base64,{for_urls}"),
        format!("  data:image/png;base64,{encoded}\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let front = Front::open().await;
        let body =
            json!({ "job_id": format!("job-{number}"), "task": null, "person": url, "garments": ["s3://elsewhere/g.png"] });
        let (status, body) = front.post("/tryon", &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{number}: {body}");
        let Task::TryOn(tryon) = queued(&front).task else { panic!("no try-on") };
        let AssetUrl::S3 { key, .. } = &tryon.person else { panic!("{:?}", tryon.person) };
        assert_eq!(std::fs::read(front.bucket.path(key)).unwrap(), file, "{number}");
    }
    let front = Front::open().await;
    for (person, says) in [(encoded, "base64"), ("data:image/png;base64,****".into(), "base64")] {
        let (status, body) =
            front.post("/tryon", &json!({ "job_id": "job-1", "person": person, "garments": ["s3://b/g"] })).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_problem(&body, "invalid_request", Some("person"), says);
        assert!(!body.to_string().contains(&person[..12]) || person.starts_with("data:"), "{body}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_refused_at_the_door_by_its_name() {
    let front = Front::open().await;
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec();
    let jpeg = image(ImageFormat::Jpeg, 64);
    let cut = jpeg[..jpeg.len() / 2].to_vec();
    for (file, says) in [
        (heic, "HEIC"),
        (b"<!doctype html><title>404</title>".to_vec(), "a web page"),
        (cut, "truncated or damaged"),
        (image(ImageFormat::Png, 15), "16 pixels or more"),
    ] {
        let (status, body) = send(&front, form("job-1", &file, &png())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_problem(&body, "invalid_request", Some("masked_user_image"), says);
    }
}
