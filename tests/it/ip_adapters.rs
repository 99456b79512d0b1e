//! The field `ip_adapters` of a job: what it may say, and what of it makes another request.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::requests::{generate, parse, refused, with};

/// A job with an image prompt that has these fields as well.
fn prompted(more: &Value) -> Value {
    let mut prompt = json!({ "name": "plus", "images": ["s3://bucket/a"] });
    for (field, value) in more.as_object().expect("fields") {
        prompt[field] = value.clone();
    }
    with("ip_adapters", json!([prompt]))
}

fn addresses(count: usize) -> Value {
    (0..count).map(|index| json!(format!("s3://bucket/{index}"))).collect()
}

#[test]
fn every_refusal_of_an_image_prompt_names_its_field_and_what_is_allowed() {
    let three: Vec<Value> = (0..3).map(|_| prompted(&json!({}))["ip_adapters"][0].clone()).collect();
    refused([
        (with("ip_adapters", json!("plus")), "ip_adapters", "must be a list"),
        (with("ip_adapters", json!({ "name": "plus", "images": ["s3://bucket/a"] })), "ip_adapters", "must be a list"),
        (with("ip_adapters", json!(three)), "ip_adapters", "must be at most 2, got 3"),
        (with("ip_adapters", json!(["plus"])), "ip_adapters[0]", "must be an object"),
        (with("ip_adapters", json!([["plus", ["s3://bucket/a"]]])), "ip_adapters[0]", "must be an object"),
        (with("ip_adapters", json!([{ "name": "plus" }])), "ip_adapters[0].images", "is required"),
        (with("ip_adapters", json!([{ "images": ["s3://bucket/a"] }])), "ip_adapters[0].name", "is required"),
        (prompted(&json!({ "name": "Plus!" })), "ip_adapters[0].name", "a-z 0-9 . _ -"),
        (prompted(&json!({ "images": [] })), "ip_adapters[0].images", "must be 1 to 4 addresses, got 0"),
        (prompted(&json!({ "images": addresses(5) })), "ip_adapters[0].images", "must be 1 to 4 addresses, got 5"),
        (prompted(&json!({ "images": "s3://bucket/a" })), "ip_adapters[0].images", "must be a list"),
        (prompted(&json!({ "images": ["s3://bucket/a", "ftp://b/k"] })), "ip_adapters[0].images[1]", "s3://BUCKET/KEY"),
        (prompted(&json!({ "images": ["data:image/png;base64,AAAA"] })), "ip_adapters[0].images[0]", "data: URLs are taken by"),
        (prompted(&json!({ "scale": 2.1 })), "ip_adapters[0].scale", "a number from 0 to 2, got 2.1"),
        (prompted(&json!({ "scale": -0.1 })), "ip_adapters[0].scale", "a number from 0 to 2, got -0.1"),
        (prompted(&json!({ "image": { "url": "s3://bucket/a" } })), "ip_adapters[0].image", "is not a field"),
    ]);
}

#[test]
fn all_of_an_image_prompt_makes_another_request_and_what_is_left_out_is_what_it_gets() {
    let plain = parse(&json!({ "job_id": "job-1", "prompt": "a mug" })).expect("a job");
    let none = parse(&json!({ "job_id": "job-1", "prompt": "a mug", "ip_adapters": [] })).expect("a job");
    assert_eq!(plain.fingerprint, none.fingerprint, "an empty list is none");
    let jobs = [
        json!({}),
        json!({ "name": "plain" }),
        json!({ "images": ["s3://bucket/b"] }),
        json!({ "images": ["s3://bucket/a", "s3://bucket/b"] }),
        json!({ "images": ["s3://bucket/b", "s3://bucket/a"] }),
        json!({ "scale": 0.5 }),
        json!({ "scale": 0 }),
    ];
    let count = jobs.len();
    let fingerprints: BTreeSet<String> =
        jobs.into_iter().map(|more| parse(&prompted(&more)).expect("a job").fingerprint).chain([plain.fingerprint]).collect();
    assert_eq!(fingerprints.len(), count + 1, "each is another request");
    let zeros = [0.0, -0.0].map(|zero| parse(&prompted(&json!({ "scale": zero }))).expect("a job").fingerprint);
    assert_eq!(zeros[0], zeros[1], "-0 is 0");
    let told = parse(&prompted(&json!({ "scale": 1 }))).expect("a job");
    let short = parse(&prompted(&json!({ "scale": null }))).expect("a job");
    assert_eq!((&told.fingerprint, &generate(&told).image_prompts), (&short.fingerprint, &generate(&short).image_prompts));
}

/// A presigned address is the same image under another signature.
#[test]
fn a_signature_is_no_part_of_an_image_prompt() {
    let signed = |signature: &str| {
        let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261129%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=\
                     20261129T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=";
        let job = prompted(&json!({ "images": [format!("https://bucket.s3.amazonaws.com/fox.png?{query}{signature}")] }));
        parse(&job).expect("a job").fingerprint
    };
    assert_eq!(signed(&"a".repeat(64)), signed(&"b".repeat(64)));
}
