//! What a job may say about its denoising loop, and the seed it gets that asks for any.

use atelier::job::Job;
use atelier::job::request::Defaults;
use atelier::job::task::sampling::{HeightWidth, TopLeft};
use serde_json::{Value, json};

use crate::requests::{generate, parse, refused, started, with};

/// The contract's example without steps, and with these fields.
fn sampled(fields: Value) -> Value {
    let mut body = with("steps", json!(null));
    if let Value::Object(fields) = fields {
        body.as_object_mut().expect("an object").extend(fields);
    }
    body
}

#[test]
fn a_list_of_timesteps_or_noise_levels_fixes_the_number_of_steps() {
    let job = parse(&sampled(json!({ "scheduler": "Heun", "timesteps": [900, 500.0, 20] }))).expect("timesteps");
    assert_eq!((generate(&job).steps.get(), generate(&job).scheduler.to_string().as_str()), (3, "heun"));
    let job = parse(&sampled(json!({ "scheduler": "euler", "sigmas": [14.6, 3, 0.0] }))).expect("noise levels");
    assert_eq!(generate(&job).steps.get(), 2);
    parse(&sampled(json!({ "scheduler": "euler", "sigmas": [14.6, 3, 0.0], "steps": 2 }))).expect("the same number");
    parse(&sampled(json!({ "scheduler": "ddim", "eta": 0.5, "guidance_rescale": null, "clip_skip": null }))).expect("an eta");
}

#[test]
fn every_refusal_of_sampling_names_its_field_and_what_is_allowed() {
    let euler = |fields: Value| {
        let mut body = sampled(fields);
        body["scheduler"] = json!("euler");
        body
    };
    let mut from_image = started(json!(0.5));
    from_image["guidance_rescale"] = json!(0.5);
    refused([
        (euler(json!({ "timesteps": [1, 2] })), "timesteps", "1 to 200 whole numbers, each below the one before, got [1,2]"),
        (euler(json!({ "timesteps": [] })), "timesteps", "1 to 200 whole numbers"),
        (euler(json!({ "timesteps": [9, -1] })), "timesteps", "1 to 200 whole numbers"),
        (euler(json!({ "timesteps": "9" })), "timesteps", "1 to 200 whole numbers"),
        (
            euler(json!({ "timesteps": [9, 1], "steps": 3 })),
            "steps",
            "must be 2, the number that timesteps has, or absent; got 3",
        ),
        (euler(json!({ "sigmas": [1.0] })), "sigmas", "2 to 201 numbers"),
        (euler(json!({ "sigmas": [1.0, -1.0] })), "sigmas", "2 to 201 numbers"),
        (euler(json!({ "sigmas": [1.0, 0.0], "timesteps": [9] })), "sigmas", "cannot be given next to timesteps"),
        (euler(json!({ "eta": 0.1 })), "eta", "only with scheduler ddim or tcd, got euler"),
        (sampled(json!({ "scheduler": "ddim", "eta": 1.5 })), "eta", "a number from 0 to 1, got 1.5"),
        (sampled(json!({ "scheduler": "unipc", "timesteps": [9] })), "timesteps", "euler, heun, ddpm, lcm or tcd, got unipc"),
        (sampled(json!({ "scheduler": "heun-karras", "timesteps": [9] })), "timesteps", "got heun-karras"),
        (sampled(json!({ "scheduler": "heun", "sigmas": [9, 0] })), "sigmas", "only with scheduler euler, got heun"),
        (from_image, "guidance_rescale", "only without init_image"),
        (with("guidance_rescale", json!(2)), "guidance_rescale", "from 0 to 1"),
        (
            with("original_size", json!([0, 64])),
            "original_size",
            "[height, width], each a whole number from 1 to 16384, got [0,64]",
        ),
        (with("target_size", json!([64])), "target_size", "[height, width], each a whole number from 1 to 16384"),
        (with("target_size", json!("64x64")), "target_size", "[height, width], each a whole number from 1 to 16384"),
        (with("crops_coords_top_left", json!([0, 16_385])), "crops_coords_top_left", "[top, left], each a whole number from 0"),
        (with("crops_coords_top_left", json!([-1, 0])), "crops_coords_top_left", "[top, left], each a whole number from 0"),
        (with("clip_skip", json!(24)), "clip_skip", "a whole number from 0 to 23, got 24"),
    ]);
}

#[test]
fn sizes_are_as_diffusers_has_them_and_count_only_where_they_are_given() {
    let body = |fields: Value| parse(&sampled(fields)).expect("a good body");
    let job = body(json!({ "original_size": [1024, 768.0], "crops_coords_top_left": [0, 16], "target_size": null }));
    let sampling = &generate(&job).sampling;
    assert_eq!(sampling.original_size.map(HeightWidth::get), Some([1024, 768]));
    assert_eq!((sampling.crops_coords_top_left.map(TopLeft::get), sampling.target_size), (Some([0, 16]), None));
    assert_eq!(body(json!({ "original_size": null })).fingerprint, body(json!({})).fingerprint);
}

#[test]
fn spellings_of_a_scheduler_are_one_request() {
    let fingerprint = |name: &str| parse(&with("scheduler", json!(name))).expect("a good body").fingerprint;
    assert_eq!(fingerprint("DPM++ 2M Karras"), fingerprint("dpmsolver++-karras"));
    assert_eq!(fingerprint("Euler a"), fingerprint("euler_a"));
    assert_eq!(fingerprint("DPMSolverMultistepScheduler"), fingerprint("dpmsolver++"));
}

#[test]
fn any_seed_is_the_same_one_whenever_the_job_is_delivered() {
    let seed = |body: &Value| generate(&parse(body).expect("a good body")).seed.get();
    let any = with("seed", json!(-1));
    let first = seed(&any);
    assert!(first < 1 << 32 && first == seed(&any));
    let mut same = any.clone();
    same["seed"] = json!(-1.0);
    same["callback"] = json!({ "metadata": { "attempt": 2 } });
    assert_eq!(seed(&same), first, "neither the spelling nor who is notified counts");
    let mut other = any.clone();
    other["job_id"] = json!("another");
    assert_ne!(seed(&other), first);
    let mut other = any;
    other["negative_prompt"] = json!("something else");
    assert_ne!(seed(&other), first);
}

#[test]
fn a_manifest_may_ask_for_any_seed() {
    let defaults = |seed: i64| -> Defaults {
        let defaults = json!({ "model": "tiny-sd", "steps": 4, "guidance_scale": 7.5, "scheduler": "ddim", "width": 64, "height": 64,
            "seed": seed, "prefix": "" });
        serde_json::from_value(defaults).expect("defaults")
    };
    let job = |body: Value, seed: i64| Job::from_json(body.to_string().as_bytes(), &defaults(seed)).expect("a good body");
    let body = |id: &str, fields: Value| {
        let mut body = json!({ "job_id": id, "prompt": "a cat" });
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
        body
    };
    let any = job(body("one", json!({})), -1);
    assert_eq!(generate(&any).seed, generate(&job(body("one", json!({})), -1)).seed);
    assert_ne!(generate(&any).seed, generate(&job(body("two", json!({})), -1)).seed);
    let asked = job(body("one", json!({ "seed": -1 })), 42);
    assert_eq!(
        (generate(&asked).seed, &asked.fingerprint),
        (generate(&any).seed, &any.fingerprint),
        "as if the job had asked for it"
    );
    assert_eq!(generate(&job(body("one", json!({ "seed": 7 })), -1)).seed.get(), 7);
    assert_eq!(serde_json::to_value(defaults(-1)).expect("JSON")["seed"], json!(-1));
}
