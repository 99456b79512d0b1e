//! `/edit`: images in a form or as addresses in JSON, and what is wrong with them by the name that the caller used.

use atelier::job::Job;
use atelier::job::task::Task;
use atelier::job::task::edit::Edit;
use atelier::job::task::tryon::Mode;
use atelier::job::url::AssetUrl;
use atelier::store::fetch::InputKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::tryon::Form;
use super::{Front, assert_problem, image, png};
use crate::requests::contract;

async fn send(front: &Front, form: Form) -> (StatusCode, Value) {
    let response = form.send(front.request(Method::POST, "/edit")).await.unwrap();
    (response.status(), super::json_of(response).await)
}

fn form() -> Form {
    Form::default().text("job_id", "job-1").text("prompt", "make it snow")
}

fn queued(front: &Front) -> (Job, Edit) {
    let taken = front.shelf.taken();
    assert_eq!(taken.len(), 1, "{taken:?}");
    let job = Job::from_json(taken[0].1.to_string().as_bytes(), &contract()).unwrap();
    let Task::Edit(edit) = job.task.clone() else { panic!("no edit: {job:?}") };
    (job, edit)
}

#[tokio::test]
async fn a_form_becomes_a_message_and_files_in_the_bucket_in_its_order() {
    let front = Front::open().await;
    let files = [image(ImageFormat::Jpeg, 16), image(ImageFormat::WebP, 18), png()];
    let form = form()
        .file("image", &files[0])
        .text("negative_prompt", "7")
        .text("mode", "base")
        .text("steps", "9")
        .file("image", &files[1])
        .text("guidance_scale", "2.5")
        .text("width", "208")
        .text("height", "96")
        .text("num_images", "2")
        .text("seed", "-1")
        .text("tenant", "ada")
        .file("image[]", &files[2]);
    let (status, body) = send(&front, form).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let (job, edit) = queued(&front);
    assert_eq!((edit.prompt.as_str(), edit.negative_prompt.as_str(), edit.mode), ("make it snow", "7", Some(Mode::Base)));
    assert_eq!((edit.steps.get(), edit.num_images.get(), job.tenant.as_deref()), (9, 2, Some("ada")));
    assert!((edit.guidance_scale.get() - 2.5).abs() < f64::EPSILON);
    assert_eq!([edit.width, edit.height].map(|side| side.unwrap().get()), [208, 96]);
    assert_eq!(edit.images.get().len(), 3);
    for (number, (asset, extension)) in edit.images.get().iter().zip(["jpg", "webp", "png"]).enumerate() {
        let AssetUrl::S3 { key, .. } = asset else { panic!("{asset}") };
        assert!(key.starts_with(&format!("inputs/job-1/image-{number}-")) && key.ends_with(extension), "{key}");
        assert_eq!(std::fs::read(front.bucket.path(key)).unwrap(), files[number]);
        front.store.fetch(asset, InputKind::Image, "images", &job).await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_form_is_refused_by_the_name_of_its_field() {
    let front = Front::open().await;
    let four = (0..4).fold(form(), |form, _| form.file("image", &png()));
    let cases = [
        (form(), "image", "is required: 1 to 3 files"),
        (four, "image", "comes more than 3 times"),
        (Form::default().text("prompt", "x").file("image", &png()), "job_id", "is required"),
        (Form::default().text("job_id", "a").file("image", &png()), "prompt", "is required"),
        (form().file("image", b"no image"), "image", "must be a PNG, JPEG or WebP image"),
        (form().file("image", &png()).file("image", b"no image"), "image[1]", "must be a PNG, JPEG or WebP image"),
        (form().file("image", &png()).text("width", "100"), "width", "a multiple of 16 from 64 to 2048, got 100"),
        (form().file("image", &png()).text("height", "wide"), "height", "got \"wide\""),
        (form().file("image", &png()).text("steps", "0"), "steps", "from 1 to 200"),
        (form().file("image", &png()).text("mode", "turbo"), "mode", "fp8, lora, base or null"),
        (form().file("image", &png()).text("prompt", "again"), "prompt", "comes twice"),
        (form().file("masked_user_image", &png()), "masked_user_image", "is not a field of this form; allowed are job_id"),
        (form().file("image", &png()).text("cfg", "1"), "cfg", "is not a field of this form"),
    ];
    for (form, field, says) in cases {
        let (status, answer) = send(&front, form).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_problem(&answer, "invalid_request", Some(field), says);
    }
    assert!(front.shelf.taken().is_empty());
}

#[tokio::test]
async fn the_wire_form_is_taken_with_images_written_out_in_it() {
    let front = Front::open().await;
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png()));
    let wire = json!({
        "job_id": "job-1", "prompt": "put image 2 on image 1", "images": ["s3://elsewhere/a.png", data],
        "output": { "prefix": "edits/" }, "callback": { "metadata": { "price": 1.10 } },
    });
    let (status, body) = front.post("/edit", &wire).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let (job, edit) = queued(&front);
    assert_eq!((job.output.prefix.as_str(), edit.seed.get(), edit.width), ("edits/", 42, None));
    let images: Vec<String> = edit.images.get().iter().map(ToString::to_string).collect();
    assert!(images[0] == "s3://elsewhere/a.png" && images[1].contains("/inputs/job-1/image-1-"), "{images:?}");
    for (path, change, field, says) in [
        ("/edit", json!({ "task": "generate" }), "task", "POST a job of task generate to /generate"),
        ("/edit", json!({ "task": "tryon" }), "task", "POST a try-on to /tryon"),
        ("/tryon", json!({ "task": "edit" }), "task", "POST an edit to /edit"),
        ("/generate", json!({ "task": "edit" }), "task", "POST an edit to /edit"),
        ("/edit", json!({ "images": [] }), "images", "1 to 3 addresses, got 0"),
        ("/edit", json!({ "images": [data, data, data, data] }), "images", "1 to 3 addresses, got 4"),
        ("/edit", json!({ "images": [data, "data:nonsense"] }), "images[1]", "base64"),
        ("/edit", json!({ "images": [data, "data:image/png;base64,AAAA"] }), "images[1]", "PNG, JPEG or WebP"),
        ("/edit", json!({ "lora": [{}] }), "lora[0].url", "is required"),
        ("/edit", json!({ "embeddings": [] }), "embeddings", "is not a field of this job"),
        ("/edit", json!({ "prompt": null }), "prompt", "must be a text"),
        ("/edit", json!({ "job_id": null }), "job_id", "is required"),
        ("/edit", json!({ "job_id": 7 }), "job_id", "must be a text, got 7"),
        ("/edit", json!({ "images": "s3://b/a.png" }), "images", "must be a list, got \"s3://b/a.png\""),
        ("/edit", json!({ "watermark": true }), "watermark", "must be an object, got true"),
    ] {
        let mut body = wire.clone();
        body["job_id"] = "job-2".into();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (status, answer) = front.post(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {change}: {answer}");
        assert_problem(&answer, "invalid_request", Some(field), says);
    }
}
