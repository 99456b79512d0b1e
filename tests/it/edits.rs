//! The body of an edit, and the modes of jobs from text: what is taken, what is refused, and in which words.

use atelier::job::Job;
use atelier::job::request::Defaults;
use atelier::job::task::tryon::Mode;
use atelier::job::task::{EditSidePx, Task};
use serde_json::{Value, json};

use crate::requests::{contract, parse, refusal};

/// An edit with every field, one of them changed.
pub(crate) fn edit(field: &str, value: Value) -> Value {
    let mut body = json!({
        "job_id": "e-1", "task": "edit", "prompt": "make it snow", "images": ["s3://bucket/a.png", "https://shop.example/b.png"],
        "negative_prompt": "", "model": "sd15", "mode": "fp8", "steps": 4, "guidance_scale": 1.0, "width": 256, "height": 512,
        "num_images": 1, "seed": 42, "output": { "prefix": "edits/" }, "callback": { "metadata": { "user_id": "7" } },
        "watermark": { "text": "© Ada" }, "tenant": "ada"
    });
    body[field] = value;
    body
}

#[test]
fn an_edit_is_taken_whole_and_has_its_modes_defaults() {
    let whole = parse(&edit("mode", json!(null))).expect("every field");
    let Task::Edit(task) = &whole.task else { panic!("no edit: {whole:?}") };
    assert_eq!(task.images.get().len(), 2);
    assert_eq!([task.width, task.height].map(|side| side.map(EditSidePx::get)), [Some(256), Some(512)]);
    assert_eq!((whole.output.prefix.as_str(), whole.tenant.as_deref()), ("edits/", Some("ada")));
    for (mode, steps, guidance_scale) in [(json!(null), 4, 1.0), (json!("lora"), 4, 1.0), (json!("base"), 40, 4.0)] {
        let least = json!({ "job_id": "e", "task": "edit", "prompt": "x", "images": ["s3://b/p"], "mode": mode });
        let Task::Edit(least) = parse(&least).expect("the required fields are enough").task else { panic!("no edit") };
        assert_eq!((least.steps.get(), least.seed.get(), least.num_images.get()), (steps, 42, 1), "{mode}");
        assert!((least.guidance_scale.get() - guidance_scale).abs() < f64::EPSILON, "{mode}");
        assert_eq!((least.width, least.height, least.model.as_str()), (None, None, "sd15"));
    }
    let any = parse(&edit("seed", json!(-1))).expect("any seed");
    let again = parse(&edit("seed", json!(-1))).expect("any seed");
    assert_eq!(any.task, again.task, "each time the job is delivered it has the same one");
}

#[test]
fn every_refusal_of_an_edit_names_its_field_and_what_is_allowed() {
    let without = |field: &str| {
        let mut body = edit("seed", json!(1));
        body.as_object_mut().expect("an object").remove(field);
        body
    };
    let table = [
        (without("prompt"), "prompt", "is required"),
        (without("images"), "images", "is required"),
        (edit("images", json!(null)), "images", ""),
        (edit("images", json!([])), "images", "1 to 3 addresses, got 0"),
        (edit("images", json!(vec!["s3://b/g"; 4])), "images", "1 to 3 addresses, got 4"),
        (edit("images", json!(["s3://b/g", 7])), "images[1]", "must be an address, got 7"),
        (edit("prompt", json!("x".repeat(2_001))), "prompt", "at most 2000 characters"),
        (edit("mode", json!("turbo")), "mode", "fp8, lora, base or null"),
        (edit("width", json!(72)), "width", "a multiple of 16 from 64 to 2048, got 72"),
        (edit("height", json!(2_064)), "height", "a multiple of 16 from 64 to 2048"),
        (edit("guidance_scale", json!(51)), "guidance_scale", "from 0 to 50"),
        (edit("num_images", json!(5)), "num_images", "from 1 to 4"),
        (edit("seed", json!(-2)), "seed", "or -1 for any"),
        (edit("lora", json!([{ "url": "s3://b/l", "scale": 9 }])), "lora[0].scale", "from -4 to 4"),
        (
            edit("lora", json!([{ "url": "s3://b/l", "alpha": 1, "config_url": "s3://b/c" }])),
            "lora[0].alpha",
            "say the same twice",
        ),
        (edit("lora", json!([[]])), "lora[0]", "must be an object"),
        (edit("task", json!("inpaint")), "task", "must be \"generate\", \"tryon\" or \"edit\", got \"inpaint\""),
        (edit("person", json!("s3://b/p")), "person", "is not a field of this job; allowed are `job_id`, `task`, `prompt`"),
    ];
    for (body, field, allowed) in table {
        let (named, problem) = refusal(&body);
        assert_eq!(named, field, "{problem} for {body}");
        assert!(problem.contains(allowed), "{field}: {problem:?} does not say {allowed:?}");
    }
}

#[test]
fn the_fingerprint_of_an_edit_follows_all_that_decides_the_image() {
    let fingerprint = |body: &Value| parse(body).expect("a good body").fingerprint;
    let same = fingerprint(&edit("tenant", json!(null)));
    assert_eq!(same, fingerprint(&edit("callback", json!(null))), "whom to tell decides nothing");
    assert_eq!(same, fingerprint(&edit("mode", json!(null))), "a default written out is the same request");
    let mut seen = vec![same];
    for (field, value) in [
        ("images", json!(["https://shop.example/b.png", "s3://bucket/a.png"])),
        ("images", json!(["s3://bucket/a.png"])),
        ("prompt", json!("make it rain")),
        ("negative_prompt", json!("blur")),
        ("model", json!("other")),
        ("mode", json!("lora")),
        ("steps", json!(5)),
        ("guidance_scale", json!(2)),
        ("width", json!(512)),
        ("height", json!(null)),
        ("num_images", json!(2)),
        ("lora", json!([{ "url": "s3://b/l" }])),
        ("lora", json!([{ "url": "s3://b/l", "scale": 0.5 }])),
        ("seed", json!(43)),
        ("seed", json!(-1)),
        ("watermark", json!(null)),
        ("output", json!({ "prefix": "other/" })),
    ] {
        let other = fingerprint(&edit(field, value));
        assert!(!seen.contains(&other), "not distinguished: {field}");
        seen.push(other);
    }
}

#[test]
fn an_edit_of_a_model_without_modes_has_the_manifests_defaults() {
    let without = Defaults { edits_without_modes: true, ..contract() };
    let read = |body: &Value| Job::from_json(body.to_string().as_bytes(), &without).expect("a job");
    let least = json!({ "job_id": "e", "task": "edit", "prompt": "x", "images": ["s3://b/p"] });
    let Task::Edit(least) = read(&least).task else { panic!("no edit") };
    assert_eq!((least.mode, least.steps.get()), (None, 50));
    assert!((least.guidance_scale.get() - 7.5).abs() < f64::EPSILON);
    let Task::Edit(named) = read(&edit("mode", json!("base"))).task else { panic!("no edit") };
    assert_eq!(named.mode, Some(Mode::Base), "who names one is told that there is none");
}

#[test]
fn a_job_from_text_has_the_defaults_of_its_mode() {
    let with_modes = |body: &Value| {
        let defaults = Defaults { has_modes: true, ..contract() };
        let job = Job::from_json(body.to_string().as_bytes(), &defaults).expect("a job");
        let Task::Generate(generate) = job.task else { panic!("not from text") };
        (generate.mode.map(Mode::as_str), generate.steps.get(), generate.guidance_scale.get().to_bits())
    };
    let body = |mode: Value| json!({ "job_id": "g", "prompt": "a mug", "mode": mode });
    assert_eq!(with_modes(&body(json!(null))), (Some("fp8"), 4, 1.0_f64.to_bits()));
    assert_eq!(with_modes(&body(json!("lora"))), (Some("lora"), 4, 1.0_f64.to_bits()));
    assert_eq!(with_modes(&body(json!("base"))), (Some("base"), 50, 7.5_f64.to_bits()));
    let mut own = body(json!("fp8"));
    own["steps"] = json!(8);
    own["guidance_scale"] = json!(2);
    assert_eq!(with_modes(&own), (Some("fp8"), 8, 2.0_f64.to_bits()));
    let Task::Generate(without) = parse(&body(json!(null))).expect("a job").task else { panic!("not from text") };
    assert_eq!((without.mode, without.steps.get()), (None, 50));
}
