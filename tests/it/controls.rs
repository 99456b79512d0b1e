//! The field `controlnets` of a job: what it may say, and what of it makes another request.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::requests::{generate, parse, refused, with};

/// A job with a control that has these fields as well.
fn controlled(more: &Value) -> Value {
    let mut control = json!({ "name": "canny", "image": { "url": "s3://bucket/c" } });
    for (field, value) in more.as_object().expect("fields") {
        control[field] = value.clone();
    }
    with("controlnets", json!([control]))
}

#[test]
fn every_refusal_of_controls_names_its_field_and_what_is_allowed() {
    let mut cached = controlled(&json!({}));
    cached["step_cache"] = json!({ "interval": 3 });
    let five: Vec<Value> = (0..5).map(|_| controlled(&json!({}))["controlnets"][0].clone()).collect();
    refused([
        (with("controlnets", json!("canny")), "controlnets", "must be a list"),
        (with("controlnets", json!(five)), "controlnets", "must be at most 4, got 5"),
        (with("controlnets", json!(["canny"])), "controlnets[0]", "must be an object"),
        (with("controlnets", json!([{ "name": "canny" }])), "controlnets[0].image", "is required"),
        (controlled(&json!({ "name": "Canny!" })), "controlnets[0].name", "a-z 0-9 . _ -"),
        (controlled(&json!({ "image": "s3://bucket/c" })), "controlnets[0].image", "must be an object"),
        (controlled(&json!({ "image": { "url": "ftp://b/k" } })), "controlnets[0].image.url", "s3://BUCKET/KEY"),
        (controlled(&json!({ "scale": 2.1 })), "controlnets[0].scale", "a number from 0 to 2, got 2.1"),
        (controlled(&json!({ "scale": -0.1 })), "controlnets[0].scale", "a number from 0 to 2, got -0.1"),
        (controlled(&json!({ "start": 1.5 })), "controlnets[0].start", "a number from 0 to 1, got 1.5"),
        (controlled(&json!({ "end": -1 })), "controlnets[0].end", "a number from 0 to 1, got -1"),
        (controlled(&json!({ "start": 0.5, "end": 0.5 })), "controlnets[0].end", "above start, which is 0.5, got 0.5"),
        (controlled(&json!({ "start": 1 })), "controlnets[0].end", "above start, which is 1, got 1"),
        (controlled(&json!({ "detect": "depth" })), "controlnets[0].detect", "must be one of canny or null, got \"depth\""),
        (controlled(&json!({ "low_threshold": 9 })), "controlnets[0].low_threshold", "only with \"detect\": \"canny\""),
        (controlled(&json!({ "detect": "canny", "high_threshold": 2041 })), "controlnets[0].high_threshold", "from 0 to 2040"),
        (
            controlled(&json!({ "detect": "canny", "high_threshold": 99 })),
            "controlnets[0].low_threshold",
            "at most high_threshold, 99, got 100",
        ),
        (controlled(&json!({ "strength": 1 })), "controlnets[0].strength", "is not a field"),
        (cached, "step_cache", "cannot be used together with controlnets: leave one of them out"),
    ]);
}

#[test]
fn all_of_a_control_makes_another_request_and_what_is_left_out_is_what_it_gets() {
    let plain = parse(&json!({ "job_id": "job-1", "prompt": "a mug" })).expect("a job");
    let none = parse(&json!({ "job_id": "job-1", "prompt": "a mug", "controlnets": [] })).expect("a job");
    assert_eq!(plain.fingerprint, none.fingerprint, "an empty list is none");
    let jobs = [
        json!({}),
        json!({ "name": "depth" }),
        json!({ "image": { "url": "s3://bucket/d" } }),
        json!({ "scale": 0.5 }),
        json!({ "start": 0.5 }),
        json!({ "end": 0.5 }),
        json!({ "detect": "canny" }),
        json!({ "detect": "canny", "low_threshold": 99 }),
        json!({ "detect": "canny", "high_threshold": 201 }),
    ];
    let count = jobs.len();
    let fingerprints: BTreeSet<String> =
        jobs.into_iter().map(|more| parse(&controlled(&more)).expect("a job").fingerprint).chain([plain.fingerprint]).collect();
    assert_eq!(fingerprints.len(), count + 1, "each is another request");
    let same = json!({ "scale": 1, "start": 0, "end": 1, "detect": "canny", "low_threshold": 100, "high_threshold": 200 });
    let told = parse(&controlled(&same)).expect("a job");
    let short = parse(&controlled(&json!({ "detect": "canny" }))).expect("a job");
    assert_eq!((&told.fingerprint, &generate(&told).controls), (&short.fingerprint, &generate(&short).controls));
    let zeros =
        [0.0, -0.0].map(|zero| parse(&controlled(&json!({ "scale": zero, "start": zero }))).expect("a job").fingerprint);
    assert_eq!(zeros[0], zeros[1], "-0 is 0");
    let one = controlled(&json!({}))["controlnets"][0].clone();
    let other = controlled(&json!({ "name": "depth" }))["controlnets"][0].clone();
    let both = |list: Value| parse(&with("controlnets", list)).expect("a job").fingerprint;
    assert_ne!(both(json!([one, other])), both(json!([other, one])), "in another order sums round otherwise");
}
