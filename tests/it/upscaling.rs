//! The field `upscale` of a job: what it may say, what of it makes another request, and what a function answers.

use std::collections::BTreeSet;

use atelier::job::Job;
use atelier::job::task::ModelName;
use atelier::job::task::upscale::{UpscaleFactor, Upscaler};
use atelier::job::upscalers::Upscalers;
use serde_json::{Value, json};

use crate::edits::edit;
use crate::requests::{parse, refused, tryon, with};

fn upscaled(upscale: Value) -> Value {
    with("upscale", upscale)
}

fn job(body: &Value) -> Job {
    parse(body).unwrap_or_else(|refusal| panic!("{body}: {}", refusal.error))
}

#[test]
fn every_refusal_of_upscaling_names_its_field_and_what_is_allowed() {
    refused([
        (upscaled(json!(2)), "upscale", "must be an object"),
        (upscaled(json!([2])), "upscale", "must be an object"),
        (upscaled(json!({})), "upscale.factor", "is required"),
        (upscaled(json!({ "factor": 3 })), "upscale.factor", "must be 2 or 4, got 3"),
        (upscaled(json!({ "factor": 8 })), "upscale.factor", "must be 2 or 4, got 8"),
        (upscaled(json!({ "factor": "4" })), "upscale.factor", "must be 2 or 4, got \"4\""),
        (upscaled(json!({ "factor": 2, "name": "X4!" })), "upscale.name", "a-z 0-9 . _ -"),
        (upscaled(json!({ "factor": 2, "scale": 2 })), "upscale.scale", "is not a field"),
    ]);
}

#[test]
fn all_of_it_makes_another_request_of_every_task_and_nothing_is_nothing() {
    for plain in [with("steps", json!(4)), tryon("seed", json!(1)), edit("seed", json!(1))] {
        let with = |upscale: Value| {
            let mut body = plain.clone();
            body["upscale"] = upscale;
            job(&body)
        };
        let own = job(&plain);
        assert_eq!((own.upscale.as_ref(), with(Value::Null).fingerprint), (None, own.fingerprint.clone()));
        let jobs = [
            json!({ "factor": 2 }),
            json!({ "factor": 4 }),
            json!({ "factor": 4, "name": "x4" }),
            json!({ "factor": 4, "name": "y4" }),
        ];
        let fingerprints: BTreeSet<String> =
            jobs.into_iter().map(|upscale| with(upscale).fingerprint).chain([own.fingerprint]).collect();
        assert_eq!(fingerprints.len(), 5);
        let same = with(json!({ "factor": 4.0, "name": null })).fingerprint;
        assert!(fingerprints.contains(&same), "4.0 is 4, and null is nothing");
    }
}

fn upscalers(max_pixels: u64) -> Upscalers {
    let listed = [("x4", 4), ("x2", 2), ("anime-x4", 4)].map(|(name, factor)| Upscaler {
        name: ModelName::new(name).unwrap(),
        factor: UpscaleFactor::new(factor).unwrap(),
        licence: None,
    });
    Upscalers { listed: listed.into(), max_pixels }
}

#[test]
fn a_function_takes_what_it_has_an_upscaler_of_and_room_for() {
    let all = upscalers(2048 * 2048);
    let name = |upscale: Value| {
        all.of(job(&upscaled(upscale)).upscale.as_ref().expect("it is there")).map(|own| own.name.as_str().to_owned())
    };
    assert_eq!(name(json!({ "factor": 4 })).ok().as_deref(), Some("x4"), "the first of the factor");
    assert_eq!(name(json!({ "factor": 4, "name": "anime-x4" })).ok().as_deref(), Some("anime-x4"));
    let says = |upscalers: &Upscalers, body: &Value| upscalers.check(&job(body)).expect_err("it is refused").to_string();
    let none = Upscalers::default();
    assert!(none.check(&job(&with("steps", json!(4)))).is_ok());
    assert_eq!(says(&none, &upscaled(json!({ "factor": 2 }))), "upscale: this function's model has no upscalers: leave it out");
    let only = Upscalers { listed: vec![all.listed[0].clone()], ..all.clone() };
    assert!(
        says(&only, &upscaled(json!({ "factor": 2 })))
            .starts_with("upscale.factor: must be one of this function's upscalers', x4 (4), got 2")
    );
    let unknown = says(&all, &upscaled(json!({ "factor": 2, "name": "x8" })));
    assert!(
        unknown.starts_with("upscale.name: must be one of this function's upscalers, x4 (4), x2 (2), anime-x4 (4), got x8"),
        "{unknown}"
    );
    let other = says(&all, &upscaled(json!({ "factor": 2, "name": "x4" })));
    assert!(other.starts_with("upscale.factor: must be 4, by which x4 enlarges, got 2"), "{other}");
    // 512x512, four times, is just as many as are allowed; a row more is not.
    assert!(all.check(&job(&upscaled(json!({ "factor": 4 })))).is_ok());
    let mut tall = upscaled(json!({ "factor": 4 }));
    tall["height"] = json!(520);
    let large = says(&all, &tall);
    assert!(large.starts_with("upscale.factor: 4 gives 2048x2080, 4259840 pixels; at most 4194304 are allowed"), "{large}");
    let mut edited = edit("upscale", json!({ "factor": 4 }));
    edited["width"] = json!(2048);
    edited["height"] = Value::Null;
    assert!(all.check(&job(&edited)).is_ok(), "its height follows from an image");
    edited["height"] = json!(2048);
    assert!(says(&all, &edited).contains("4 gives 8192x8192"));
}
