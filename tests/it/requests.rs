//! The job body: what is taken, what is refused, and in which words.

use atelier::job::outcome::JobError;
use atelier::job::request::{Defaults, Refusal};
use atelier::job::task::tryon::{Mode, Requester, Resolution};
use atelier::job::task::{Generate, Task};
use atelier::job::{ImageFormat, Job};
use serde_json::{Value, json};

/// The defaults of the style generation service's contract.
pub(crate) fn contract() -> Defaults {
    serde_json::from_value(json!({
        "model": "sd15", "steps": 50, "guidance_scale": 7.5, "scheduler": "dpmsolver++", "width": 512, "height": 512,
        "seed": 42, "prefix": "generations/"
    }))
    .unwrap()
}

pub(crate) fn parse(body: &Value) -> Result<Job, Refusal> {
    Job::from_json(body.to_string().as_bytes(), &contract())
}

pub(crate) fn refusal(body: &Value) -> (String, String) {
    match parse(body).expect_err("must be refused").error {
        JobError::Invalid { field, problem } => (field, problem),
        other => panic!("not an Invalid: {other}"),
    }
}

pub(crate) fn metadata(job: &Job) -> Value {
    serde_json::from_str(job.callback.as_ref().expect("a callback").metadata.as_str()).expect("JSON")
}

pub(crate) fn generate(job: &Job) -> &Generate {
    let Task::Generate(generate) = &job.task else { panic!("not to be generated from text: {job:?}") };
    generate
}

/// The contract's own example with one field changed.
pub(crate) fn with(field: &str, value: Value) -> Value {
    let mut body = json!({
        "job_id": "b1f0", "task": "generate", "prompt": "a lighthouse at dusk", "negative_prompt": "",
        "model": "sd15", "lora": [{ "url": "s3://bucket/loras/artist-7.safetensors", "scale": 1.0 }],
        "steps": 50, "guidance_scale": 7.5, "scheduler": "dpmsolver++", "width": 512, "height": 512,
        "num_images": 1, "seed": 42,
        "watermark": { "text": "© Ada", "position": "bottom-right", "opacity": 0.6 },
        "output": { "prefix": "generations/", "format": "png" },
        "callback": { "url": "https://backend.example/hook", "metadata": { "user_id": "7" } }
    });
    body[field] = value;
    body
}

/// The same from an image.
pub(crate) fn started(strength: Value) -> Value {
    let mut body = with("init_image", json!({ "url": "s3://bucket/a" }));
    body["strength"] = strength;
    body
}

fn one_step() -> Value {
    json!({ "job_id": "a", "prompt": "p", "steps": 1, "init_image": { "url": "s3://bucket/a" } })
}

pub(crate) fn masked(mask: &str) -> Value {
    let mut body = started(json!(0.8));
    body["mask_image"] = json!({ "url": mask });
    body
}

#[test]
fn a_start_has_diffusers_strength_where_it_says_none() {
    for (mut body, default_value) in [(started(json!(null)), 0.8), (masked("s3://bucket/m"), 1.0)] {
        body.as_object_mut().expect("an object").remove("strength");
        let job = parse(&body).expect("a start");
        let start = generate(&job).start.as_ref().expect("a start");
        assert!((start.strength.get() - default_value).abs() < f64::EPSILON);
    }
    // Not 29: in binary 50 · 0.58 is a little less, and diffusers drops what is behind the point.
    let job = parse(&started(json!(0.58))).expect("a start");
    let task = generate(&job);
    assert_eq!(task.start.as_ref().expect("a start").skipped(task.steps), 50 - 28);
}

#[test]
fn the_contracts_example_is_taken_whole() {
    let job = parse(&with("job_id", json!("b1f0"))).expect("the contract's example");
    let generate = generate(&job);
    assert_eq!((job.id.as_str(), generate.steps.get(), generate.size.to_string().as_str()), ("b1f0", 50, "512x512"));
    assert_eq!(generate.loras[0].url.to_string(), "s3://bucket/loras/artist-7.safetensors");
    assert_eq!(metadata(&job)["user_id"], "7");
    assert_eq!(job.watermark.expect("a watermark").text, "© Ada");
}

#[test]
fn what_is_left_out_has_the_contracts_defaults() {
    let job = parse(&json!({ "job_id": "a", "prompt": "b" })).expect("the two required fields are enough");
    let generate = generate(&job);
    assert_eq!(generate.model.as_str(), "sd15");
    assert_eq!((generate.steps.get(), generate.num_images.get(), generate.seed.get()), (50, 1, 42));
    assert!((generate.guidance_scale.get() - 7.5).abs() < f64::EPSILON);
    assert_eq!((generate.size.width_px(), generate.size.height_px()), (512, 512));
    assert_eq!((job.output.prefix.as_str(), job.output.format), ("generations/", ImageFormat::Png));
    assert!(job.watermark.is_none() && job.callback.is_none() && generate.loras.is_empty());
}

#[test]
fn a_whole_number_may_be_written_with_a_point() {
    let plain = parse(&with("steps", json!(50))).expect("50");
    let job = parse(&with("steps", json!(50.0))).expect("50.0 is the same number");
    assert_eq!((generate(&job).steps.get(), &job.fingerprint), (50, &plain.fingerprint));
    assert_eq!(refusal(&with("steps", json!(-0.5))).0, "steps");
    assert_eq!(refusal(&with("seed", json!(9_007_199_254_740_992.0))).0, "seed");
}

pub(crate) fn refused(table: impl IntoIterator<Item = (Value, &'static str, &'static str)>) {
    for (body, field, allowed) in table {
        let (named, problem) = refusal(&body);
        assert_eq!(named, field, "{problem} for {body}");
        assert!(problem.contains(allowed), "{field}: {problem:?} does not say {allowed:?}");
    }
}

#[test]
fn every_refusal_of_embeddings_and_starts_names_its_field_and_what_is_allowed() {
    refused([
        (with("init_image", json!("s3://b/k")), "init_image", "must be an object"),
        (with("init_image", json!({ "url": "ftp://b/k" })), "init_image.url", "s3://BUCKET/KEY"),
        (with("mask_image", json!({ "url": "s3://b/k" })), "mask_image", "only with init_image"),
        (with("strength", json!(0.5)), "strength", "only with init_image"),
        (with("strength", json!(0)), "strength", "above 0, at most 1, got 0"),
        (with("strength", json!(1.1)), "strength", "above 0, at most 1, got 1.1"),
        (started(json!(0.01)), "strength", "at least 0.020 for one of 50 steps, got 0.01"),
        (one_step(), "steps", "at least 2 with the default strength of 0.8, or give a strength; got 1"),
        (with("embeddings", json!([{ "url": "s3://b/k" }])), "embeddings[0].token", "is required"),
        (
            with("embeddings", json!([{ "url": "s3://b/k", "token": "a b" }])),
            "embeddings[0].token",
            "1 to 64 ASCII characters, none",
        ),
    ]);
}

#[test]
fn every_refusal_names_its_field_and_what_is_allowed() {
    let table = [
        (with("job_id", json!("a/b")), "job_id", "A-Z a-z 0-9 . _ -"),
        (with("job_id", json!("")), "job_id", "1 to 128"),
        (with("job_id", json!("..")), "job_id", "not start with a dot"),
        (with("job_id", json!(7)), "job_id", "must be a text, got 7"),
        (with("task", json!("upscale")), "task", "must be \"generate\", \"tryon\" or \"edit\", got \"upscale\""),
        (with("task", json!(7)), "task", "must be \"generate\""),
        (with("person", json!("s3://b/person.png")), "person", "is not a field of this job"),
        (with("prompt", json!(null)), "prompt", "must be a text, got null"),
        (with("prompt", json!("x".repeat(2_001))), "prompt", "at most 2000 characters, got 2001"),
        (with("negative_prompt", json!("x".repeat(2_001))), "negative_prompt", "at most 2000"),
        (with("model", json!("../etc")), "model", "a-z 0-9"),
        (with("steps", json!(0)), "steps", "a whole number from 1 to 200, got 0"),
        (with("steps", json!(201)), "steps", "from 1 to 200"),
        (with("steps", json!("50")), "steps", "a whole number from 1 to 200, got \"50\""),
        (with("steps", json!(2.5)), "steps", "a whole number"),
        (with("num_images", json!(0)), "num_images", "from 1 to 4"),
        (with("num_images", json!(5)), "num_images", "from 1 to 4"),
        (with("width", json!(100)), "width", "a multiple of 8 from 64 to 2048, got 100"),
        (with("height", json!(4096)), "height", "a multiple of 8 from 64 to 2048"),
        (with("guidance_scale", json!(-0.5)), "guidance_scale", "a number from 0 to 50, got -0.5"),
        (with("guidance_scale", json!("high")), "guidance_scale", "a number from 0 to 50"),
        (with("scheduler", json!("dpm++ sde")), "scheduler", "dpmsolver++, dpmsolver++-sde, dpmsolver++-singlestep"),
        (with("seed", json!(-2)), "seed", "from 0 to 9007199254740991, or -1 for any, got -2"),
        (with("lora", json!([{ "url": "ftp://host/file" }])), "lora[0].url", "s3://BUCKET/KEY or an https:// address"),
        (with("lora", json!([{ "url": "s3://bucket" }])), "lora[0].url", "bucket or key is missing"),
        (with("lora", json!([{ "url": "s3://b/k", "scale": 9 }])), "lora[0].scale", "from -4 to 4"),
        (with("lora", json!([{ "url": "s3://b/k", "alpha": 0 }])), "lora[0].alpha", "above 0, at most 65536, got 0"),
        (with("lora", json!([{ "url": "s3://b/k", "alpha": "8" }])), "lora[0].alpha", "above 0"),
        (with("lora", json!([{ "url": "s3://b/k", "config_url": "k" }])), "lora[0].config_url", "s3://BUCKET/KEY"),
        (
            with("lora", json!([{ "url": "s3://b/k" }, { "url": "s3://b/k", "alpha": 8, "config_url": "s3://b/c" }])),
            "lora[1].alpha",
            "give one of them",
        ),
        (with("lora", json!([{ "url": "s3://b/k", "weight": 1 }])), "lora[0].weight", "allowed are `url`"),
        (with("watermark", json!({ "text": "" })), "watermark.text", "1 to 120"),
        (with("watermark", json!({ "text": "x", "position": "middle" })), "watermark.position", "top-left"),
        (with("watermark", json!({ "text": "x", "opacity": 2 })), "watermark.opacity", "from 0 to 1"),
        (with("watermark", json!({})), "watermark.text", "is required"),
        (with("output", json!({ "format": "gif" })), "output.format", "png, jpeg, webp"),
        (with("output", json!({ "prefix": "../other/" })), "output.prefix", ".. part"),
        (with("output", json!({ "prefix": "no-slash" })), "output.prefix", "end in a slash"),
        (with("output", json!({ "prefix": "dead/" })), "output.prefix", "under dead/"),
        (with("output", json!({ "prefix": "inputs/a/" })), "output.prefix", "under inputs/"),
        (json!({ "job_id": "idempotency", "prompt": "a", "output": { "prefix": "" } }), "output.prefix", "under idempotency/"),
        (with("callback", json!({ "url": "file:///etc/passwd" })), "callback.url", "https://"),
        (with("callback", json!({ "url": "https://user:secret@host/" })), "callback.url", "without a user name"),
        (with("promt", json!("typo")), "promt", "is not a field of this job"),
        (with("", json!(1)), "\"\"", "is not a field of this job"),
        (with("output", json!({ "": 1 })), "output.\"\"", "is not a field of this job"),
        (json!({ "job_id": "a" }), "prompt", "is required"),
        (json!({ "prompt": "a" }), "job_id", "is required"),
        (json!([1, 2]), "body", "must be a JSON object, got [1,2]"),
    ];
    refused(table);
    let error = Job::from_json(b"{ not json", &contract()).expect_err("must be refused").error;
    assert!(error.to_string().starts_with("body: must be a JSON object"), "{error}");
}

#[test]
fn a_refusal_keeps_what_is_needed_to_notify_the_caller() {
    let refusal = parse(&with("steps", json!(0))).expect_err("must be refused");
    assert_eq!(refusal.job_id.expect("the id").as_str(), "b1f0");
    let callback = refusal.callback.expect("the callback");
    assert_eq!(callback.url.expect("its address").as_url().as_str(), "https://backend.example/hook");
}

#[test]
fn the_fingerprint_follows_the_request_and_nothing_else() {
    let fingerprint = |body: &Value| parse(body).expect("a good body").fingerprint;
    let same = fingerprint(&with("job_id", json!("b1f0")));
    let first = "5abe3d3eed955a215fe12d3288292d167414ba03e33a33b661dec47adf755a74";
    assert_eq!(same, first, "records of earlier versions must count as the same request");
    assert_eq!(same, fingerprint(&with("callback", json!({ "metadata": { "other": 1 } }))), "who is notified changes no image");
    let null = json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "scale": 1.0, "alpha": null, "config_url": null }]);
    assert_eq!(same, fingerprint(&with("lora", null)), "what is not there has changed nothing");
    let presigned = |signature: &str| {
        let signed = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60\
                      &X-Amz-SignedHeaders=host&X-Amz-Signature";
        with("lora", json!([{ "url": format!("https://b.s3.amazonaws.com/l?{signed}={signature}&versionId=3") }]))
    };
    assert_eq!(fingerprint(&presigned("aa")), fingerprint(&presigned("bb")), "a new signature names the same file");
    let others = [
        with("prompt", json!("a lighthouse at dawn")),
        with("negative_prompt", json!("rain")),
        with("lora", json!([])),
        with("lora", json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "scale": 0.5 }])),
        with("lora", json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "alpha": 8 }])),
        with("lora", json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "alpha": 4 }])),
        with("lora", json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "config_url": "s3://bucket/c" }])),
        with("lora", json!([{ "url": "s3://bucket/loras/artist-7.safetensors", "config_url": "s3://bucket/d" }])),
        with("lora", json!([{ "url": "https://host/l?id=1" }])),
        with("lora", json!([{ "url": "https://host/l?id=2" }])),
        with("init_image", json!({ "url": "s3://bucket/a" })),
        with("init_image", json!({ "url": "s3://bucket/b" })),
        started(json!(0.5)),
        masked("s3://bucket/m"),
        masked("s3://bucket/n"),
        with("embeddings", json!([{ "url": "s3://bucket/a", "token": "a" }])),
        with("embeddings", json!([{ "url": "s3://bucket/a", "token": "b" }])),
        with("steps", json!(49)),
        with("guidance_scale", json!(7.0)),
        with("scheduler", json!("ddim")),
        with("scheduler", json!("dpmsolver++-karras")),
        with("clip_skip", json!(0)),
        with("clip_skip", json!(1)),
        with("guidance_rescale", json!(0.5)),
        with("original_size", json!([512, 512])),
        with("original_size", json!([512, 513])),
        with("target_size", json!([512, 512])),
        with("crops_coords_top_left", json!([0, 0])),
        with("seed", json!(-1)),
        with("width", json!(520)),
        with("height", json!(520)),
        with("num_images", json!(2)),
        with("mode", json!("lora")),
        with("seed", json!(43)),
        with("watermark", json!(null)),
        with("output", json!({ "format": "webp" })),
        with("output", json!({ "prefix": "other/" })),
    ];
    let mut seen = vec![same];
    for body in others {
        let other = fingerprint(&body);
        assert!(!seen.contains(&other), "not distinguished: {body}");
        seen.push(other);
    }
}

/// A try-on with every field, one of them changed.
pub(crate) fn tryon(field: &str, value: Value) -> Value {
    let mut body = json!({
        "job_id": "t-1", "task": "tryon", "person": "s3://bucket/person.png",
        "garments": ["https://shop.example/shirt.png", "s3://bucket/hat.png"], "mask": null, "prompt": null,
        "negative_prompt": "", "mode": "fp8", "steps": 4, "guidance_scale": 1.0, "seed": 42, "resolution": "720p",
        "num_images": 1, "output": { "prefix": "tryons/" }, "callback": { "metadata": { "user_id": "7" } },
        "watermark": { "text": "© Ada" }, "user_id": "u-7", "session_id": "s-1", "provider": "shop"
    });
    body[field] = value;
    body
}

#[test]
fn a_tryon_is_taken_whole_and_has_the_contracts_defaults() {
    let whole = parse(&tryon("mode", json!(null))).expect("every field");
    let least = json!({ "job_id": "t-1", "task": "tryon", "person": "s3://b/p.png", "garments": ["s3://b/g.png"] });
    let least = parse(&least).expect("the required fields are enough");
    for job in [&whole, &least] {
        let Task::TryOn(tryon) = &job.task else { panic!("no try-on: {job:?}") };
        assert_eq!((tryon.mode, tryon.resolution, tryon.prompt.as_ref()), (Mode::Fp8, Resolution::P720, None));
        assert_eq!((tryon.steps.get(), tryon.seed.get(), tryon.num_images.get()), (4, 42, 1));
        assert!((tryon.guidance_scale.get() - 1.0).abs() < f64::EPSILON);
    }
    let (Task::TryOn(whole_task), Task::TryOn(least_task)) = (&whole.task, &least.task) else { panic!("no try-ons") };
    assert_eq!(whole_task.garments.get().len(), 2);
    assert_eq!((whole_task.requester.session_id.as_deref(), &least_task.requester), (Some("s-1"), &Requester::default()));
    assert_eq!((whole.output.prefix.as_str(), least.output.prefix.as_str()), ("tryons/", "generations/"));

    let base = json!({ "job_id": "t", "task": "tryon", "person": "s3://b/p", "garments": ["s3://b/g"], "mode": "base" });
    let Task::TryOn(base) = parse(&base).expect("a job in base mode").task else { panic!("no try-on") };
    assert_eq!(base.steps.get(), 40);
    assert!((base.guidance_scale.get() - 4.0).abs() < f64::EPSILON, "a mode has its own steps and guidance");
}

#[test]
fn every_refusal_of_a_tryon_names_its_field_and_what_is_allowed() {
    let without = |field: &str| {
        let mut body = tryon("seed", json!(1));
        body.as_object_mut().expect("an object").remove(field);
        body
    };
    let garments = vec!["s3://b/g"; 5];
    let table = [
        (without("person"), "person", "is required"),
        (without("garments"), "garments", "is required"),
        (tryon("person", json!(null)), "person", "must be an address, got null"),
        (tryon("person", json!("ftp://host/p")), "person", "s3://BUCKET/KEY or an https:// address"),
        (tryon("garments", json!([])), "garments", "1 to 4 addresses, got 0"),
        (tryon("garments", json!(garments)), "garments", "1 to 4 addresses, got 5"),
        (tryon("garments", json!(["s3://b/g", 7])), "garments[1]", "must be an address, got 7"),
        (tryon("mask", json!("s3://bucket")), "mask", "bucket or key is missing"),
        (tryon("prompt", json!("x".repeat(2_001))), "prompt", "at most 2000 characters"),
        (tryon("mode", json!("turbo")), "mode", "fp8, lora, base or null, got \"turbo\""),
        (tryon("resolution", json!("4k")), "resolution", "480p, 720p, 1080p or null"),
        (tryon("steps", json!(0)), "steps", "from 1 to 200"),
        (tryon("num_images", json!(5)), "num_images", "from 1 to 4"),
        (tryon("user_id", json!("x".repeat(257))), "user_id", "at most 256 characters, got 257"),
        (tryon("provider", json!(7)), "provider", "must be a text or null, got 7"),
        (tryon("width", json!(512)), "width", "is not a field of this job; allowed are `job_id`, `task`, `person`"),
        (tryon("lora", json!([])), "lora", "is not a field of this job"),
    ];
    for (body, field, allowed) in table {
        let (named, problem) = refusal(&body);
        assert_eq!(named, field, "{problem} for {body}");
        assert!(problem.contains(allowed), "{field}: {problem:?} does not say {allowed:?}");
    }
    let refused = parse(&tryon("steps", json!(0))).expect_err("must be refused");
    assert_eq!(refused.requester.expect("who asked").user_id.as_deref(), Some("u-7"));
    assert_eq!(parse(&with("steps", json!(0))).expect_err("must be refused").requester, None);
}

#[test]
fn the_fingerprint_of_a_tryon_follows_all_that_decides_the_image() {
    let fingerprint = |body: &Value| parse(body).expect("a good body").fingerprint;
    let same = fingerprint(&tryon("mask", json!(null)));
    for (field, value) in [("user_id", json!("u-8")), ("session_id", json!(null)), ("provider", json!("other"))] {
        assert_eq!(same, fingerprint(&tryon(field, value)), "{field} decides nothing");
    }
    assert_eq!(same, fingerprint(&tryon("mode", json!(null))), "a default written out is the same request");
    let mut seen = vec![same];
    for (field, value) in [
        ("person", json!("s3://bucket/other.png")),
        ("garments", json!(["s3://bucket/hat.png", "https://shop.example/shirt.png"])),
        ("mask", json!("s3://bucket/mask.png")),
        ("prompt", json!("a coat")),
        ("negative_prompt", json!("blur")),
        ("mode", json!("lora")),
        ("steps", json!(5)),
        ("guidance_scale", json!(2)),
        ("seed", json!(43)),
        ("resolution", json!("480p")),
        ("num_images", json!(2)),
        ("watermark", json!(null)),
        ("output", json!({ "prefix": "other/" })),
    ] {
        let other = fingerprint(&tryon(field, value));
        assert!(!seen.contains(&other), "not distinguished: {field}");
        seen.push(other);
    }
}

/// Jobs and their fingerprints as commit 354b586 computed them: a record of that time must still count as the same request.
#[test]
fn fingerprints_are_what_they_were() {
    let known: Vec<Value> = serde_json::from_str(include_str!("../fixtures/fingerprints.json")).expect("the fixture");
    let computed = known.iter().map(|entry| parse(&entry["body"]).expect("a good body").fingerprint);
    let expected = known.iter().map(|entry| entry["fingerprint"].as_str().expect("a text"));
    assert_eq!(computed.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}
