//! Job bodies that are common and once were read wrongly: nulls, URLs, base64, long values, large numbers.

use atelier::job::Job;
use serde_json::{Value, json};

use crate::edits::edit;
use crate::requests::{contract, generate, masked, metadata, parse, refusal, tryon, with};

/// All fields but those that `required` names, each as null, in `body` and in every object of it.
/// Returns how many it has tried, and which fields of a job `body` does not have.
fn null_is_nothing(body: &Value, required: &[&str]) -> (usize, Vec<String>) {
    fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (format!("{at}/{name}"), value)).collect(),
            Value::Array(items) => items.iter().enumerate().map(|(n, value)| (format!("{at}/{n}"), value)).collect(),
            _ => Vec::new(),
        };
        for (path, value) in children {
            if !at.ends_with("metadata") {
                paths(value, &path, found);
                found.push(path);
            }
        }
    }
    let mut all = Vec::new();
    paths(body, "", &mut all);
    let mut optional = 0;
    for path in &all {
        let (parent, name) = path.rsplit_once('/').expect("a path");
        // Without its task it is another job's body, and mask and strength mean nothing without the image.
        // Some fields mean something only with the scheduler that reads them.
        let decides = match path.as_str() {
            // Thresholds mean nothing without the detector, and a cache is of one kind.
            "/init_image" | "/controlnets/0/detect" | "/step_cache/interval" | "/step_cache/threshold" => true,
            "/task" => body["task"] != "generate",
            "/scheduler" => ["eta", "timesteps", "sigmas"].iter().any(|field| body.get(field).is_some()),
            _ => false,
        };
        let is_item = name.parse::<usize>().is_ok();
        if decides || is_item {
            continue;
        }
        let mut without = body.clone();
        without.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(name);
        let mut null = body.clone();
        *null.pointer_mut(path).expect("the field") = Value::Null;
        if required.contains(&path.as_str()) {
            let (field, problem) = refusal(&null);
            assert!(field.ends_with(name), "{path}: {field}: {problem}");
            continue;
        }
        optional += 1;
        let without = parse(&without).unwrap_or_else(|refusal| panic!("{path} left out: {}", refusal.error));
        let null = parse(&null).unwrap_or_else(|refusal| panic!("{path} null: {}", refusal.error));
        assert_eq!(null.fingerprint, without.fingerprint, "{path}");
        assert_eq!(null.callback, without.callback, "{path}");
    }
    let mut unknown = body.clone();
    unknown["no_such_field"] = Value::Null;
    let (field, allowed) = refusal(&unknown);
    assert_eq!(field, "no_such_field", "a field that is unknown is refused, null or not");
    let allowed = allowed.split('`').skip(1).step_by(2).filter(|name| body.get(name).is_none());
    (optional, allowed.map(str::to_owned).collect())
}

#[test]
fn null_for_an_optional_field_is_as_good_as_nothing() {
    let mut body = masked("s3://bucket/m");
    body["embeddings"] = json!([{ "url": "s3://bucket/e", "token": "<cat>" }]);
    body["image_guidance_scale"] = json!(1.5);
    body["upscale"] = json!({ "factor": 4, "name": "x4" });
    body["controlnets"] = json!([{ "name": "canny", "image": { "url": "s3://bucket/c" }, "scale": 0.5, "start": 0.1, "end": 0.9,
        "detect": "canny", "low_threshold": 80, "high_threshold": 160 }]);
    body["ip_adapters"] = json!([{ "name": "plus", "images": ["s3://bucket/a"], "scale": 0.5 }]);
    let required = ["/job_id", "/prompt", "/lora/0/url", "/embeddings/0/url", "/embeddings/0/token", "/init_image/url"];
    let nested = [
        "/mask_image/url",
        "/watermark/text",
        "/upscale/factor",
        "/controlnets/0/name",
        "/controlnets/0/image",
        "/controlnets/0/image/url",
    ];
    let prompted = ["/ip_adapters/0/name", "/ip_adapters/0/images"];
    let least = json!({ "job_id": "job-1", "prompt": "a mug" });
    let sampled = json!({ "scheduler": "ddim", "eta": 0.5, "guidance_rescale": 0.7, "clip_skip": 1, "tenant": "ada", "mode": "base",
        "consent": { "basis": "own", "reference": "me" }, "step_cache": { "interval": 3 },
        "original_size": [512, 512], "crops_coords_top_left": [0, 0], "target_size": [512, 512] });
    let (optional, mut untried) = null_is_nothing(&body, &[required.as_slice(), &nested, &prompted].concat());
    assert!(optional > 15, "only {optional} optional fields");
    let listed =
        [json!({ "scheduler": "euler", "timesteps": [900, 500] }), json!({ "scheduler": "euler", "sigmas": [9.5, 0.0] })];
    for fields in [sampled].into_iter().chain(listed) {
        let mut body = least.clone();
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
        let (_, also_untried) = null_is_nothing(&body, &["/job_id", "/prompt", "/consent/basis", "/consent/reference"]);
        untried.retain(|field| also_untried.contains(field));
    }
    assert_eq!(untried, [""; 0]);
    let mut worn = tryon("mask", json!("s3://b/m"));
    worn["tenant"] = json!("ada");
    worn["consent"] = json!({ "basis": "own", "reference": "me" });
    worn["step_cache"] = json!({ "threshold": 0.1 });
    worn["upscale"] = json!({ "factor": 2, "name": "x2" });
    let of_consent = ["/job_id", "/watermark/text", "/upscale/factor", "/consent/basis", "/consent/reference"];
    let (optional, mut untried) = null_is_nothing(&worn, &[of_consent.as_slice(), &["/person", "/garments"]].concat());
    for auto_mask in
        [json!({ "garment": "upper", "limbs": true, "dilate_px": 4 }), json!({ "classes": ["Dress"], "dilate_px": 4 })]
    {
        let body = tryon("auto_mask", auto_mask);
        let (_, also_untried) = null_is_nothing(&body, &[of_consent.as_slice(), &["/person", "/garments"]].concat());
        untried.retain(|field| also_untried.contains(field));
    }
    assert!(optional > 15 && untried.is_empty(), "only {optional} optional fields, untried: {untried:?}");
    let mut edited = edit("seed", json!(7));
    edited["consent"] = worn["consent"].clone();
    edited["step_cache"] = worn["step_cache"].clone();
    edited["upscale"] = worn["upscale"].clone();
    edited["lora"] = json!([{ "url": "s3://bucket/l", "scale": 0.5, "alpha": 4 }]);
    let (optional, untried) =
        null_is_nothing(&edited, &[of_consent.as_slice(), &["/prompt", "/images", "/lora/0/url"]].concat());
    assert!(optional > 10 && untried.is_empty(), "only {optional} optional fields, untried: {untried:?}");
    let kept = parse(&with("callback", json!({ "url": null, "metadata": { "a": null, "b": [null] } }))).expect("a job");
    assert_eq!(metadata(&kept), json!({ "a": null, "b": [null] }), "the caller's own nulls are handed back");
}

#[test]
fn an_address_that_only_looks_like_one_is_refused_in_words() {
    for (address, says) in [
        ("s3:bucket/key", "two slashes belong behind s3:"),
        ("s3:/bucket/key", "two slashes belong behind s3:"),
        ("s3:///key", "bucket or key is missing"),
        ("s3://bucket/key\n", "line breaks"),
        ("s3://bucket/key ", "without blanks around it"),
        (" s3://bucket/key", "without blanks around it"),
        ("s3://bucket/\tkey", "line breaks"),
        ("https://host.example/a\r\n", "line breaks"),
        ("https://host.example/a\nb", "line breaks"),
        ("\u{a0}https://host.example/a", "without blanks around it"),
    ] {
        for body in [with("lora", json!([{ "url": address }])), with("init_image", json!({ "url": address }))] {
            let (field, problem) = refusal(&body);
            assert!(field.rsplit('.').next() == Some("url") && problem.contains(says), "{address:?}: {problem}");
        }
        let (field, problem) = refusal(&tryon("person", json!(address)));
        assert!(field == "person" && problem.contains(says), "{address:?}: {problem}");
        if !address.contains("s3:") {
            let (field, problem) = refusal(&with("callback", json!({ "url": address })));
            assert!(field == "callback.url" && problem.contains(says), "{address:?}: {problem}");
        }
    }
    let job = parse(&with("init_image", json!({ "url": "S3://bucket/a key with blanks?and more" }))).expect("a good address");
    assert_eq!(generate(&job).start.as_ref().expect("a start").url.to_string(), "s3://bucket/a key with blanks?and more");
}

#[test]
fn base64_in_place_of_an_address_is_named_and_not_echoed() {
    let photo = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB".to_owned() + &"q83vEjRWeJA".repeat(40);
    let lines = photo.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).expect("ASCII")).collect::<Vec<_>>();
    let texts = [
        photo.clone(),
        lines.join("\r\n") + "\n",
        format!(" {photo}"),
        format!("image/png;base64,{photo}"),
        format!("base64,{photo}"),
        photo.replace("q83v", "//3v"),
        "/9j/4AAQSkZJRgABAQ".to_owned(),
        "Zm9v".repeat(30),
    ];
    for text in texts {
        for (body, field) in [
            (with("init_image", json!({ "url": text })), "init_image.url"),
            (tryon("person", json!(text)), "person"),
            (tryon("garments", json!([text])), "garments[0]"),
        ] {
            let (named, problem) = refusal(&body);
            assert_eq!(named, field);
            assert!(problem.contains("got an image in base64") || problem.contains("got base64"), "{problem}");
            assert!(!problem.contains(&text[text.len() - 16..text.len() - 4]), "{problem}");
        }
    }
    let (_, problem) = refusal(&with("init_image", json!({ "url": "photo.png" })));
    assert!(problem.contains("got \"photo.png\""), "{problem}");
}

/// A long value with a secret in it, at every place of a body.
#[test]
fn no_message_has_more_than_eighty_characters_of_a_value_or_the_query_of_an_address() {
    let secret = "https://host.example/a?X-Amz-Signature=s3cr3t";
    let long = format!("{secret}&{}", "s3cr3t".repeat(200));
    let values = |text: &str| {
        [json!(text), json!([text]), json!({ "a": text }), json!({ text: 1 }), json!([{ "url": text, text: text }])]
    };
    let whole = masked("s3://b/m");
    let mut fields: Vec<String> = whole.as_object().expect("an object").keys().cloned().collect();
    fields.extend(["embeddings".into(), "promt".into(), secret.into(), long.clone()]);
    let mut refused = 0;
    for field in &fields {
        let bare = ["h.example/a?", "//h.example/a?", "https://h ost/a?", "s3:b/k?", "HTTPS//h/a?"];
        let bare = bare.map(|start| format!("{start}x=1&X-Amz-Signature=s3cr3t"));
        let bare = bare.iter().flat_map(|text| values(text));
        let wrong = values(secret).into_iter().chain(values(&long)).chain(values(&format!("ftp://a b/{long}")));
        for value in wrong.chain(bare) {
            let mut body = whole.clone();
            body[field.as_str()] = value.clone();
            let mut nested = whole.clone();
            nested["output"] = json!({ "format": value });
            let bodies = [body, nested, tryon(field, value.clone()), json!([value])];
            for body in bodies {
                let Err(refusal) = parse(&body) else { continue };
                refused += 1;
                let message = format!("{}", refusal.error);
                assert!(!message.contains("s3cr3t"), "{message}");
                // Its own words, the names of all fields among them, are no more than this.
                assert!(message.chars().count() < 600, "{message}");
                assert!(!format!("{:?}", refusal.error).contains("s3cr3t"), "{message}");
            }
        }
    }
    assert!(refused > 500, "{refused}");
    let job = parse(&with("lora", json!([{ "url": secret }]))).expect("a job");
    assert!(!format!("{job:?}").contains("s3cr3t"), "{job:?}");
}

#[test]
fn metadata_is_kept_as_it_was_written() {
    let written = r#"{"id": 18446744073709551616, "huge": 123456789012345678901234567890, "negative": -9223372036854775809,
        "price": 1.10, "third": 0.333333333333333333333, "small": 1e-7, "large": 1E+30, "larger": -1e4000, "half": "\ud83c", "nested": [{"n": 98765432109876543210.5}]}"#;
    for body in [
        format!(r#"{{"job_id": "a", "prompt": "p", "callback": {{"metadata": {written}}}}}"#),
        format!(
            r#"{{"job_id": "a", "task": "tryon", "person": "s3://b/p", "garments": ["s3://b/g"], "callback": {{"metadata": {written}}}}}"#
        ),
    ] {
        for job in [Job::from_json(body.as_bytes(), &contract()), Job::from_message(body.as_bytes(), None, &contract())] {
            assert_eq!(job.expect("a job").callback.expect("a callback").metadata.as_str(), written);
        }
        let refused = body.replace("\"job_id\": \"a\"", "\"job_id\": \"a\", \"steps\": 0");
        let refusal = Job::from_json(refused.as_bytes(), &contract()).expect_err("must be refused");
        assert_eq!(refusal.callback.expect("a callback").metadata.as_str(), written);
    }
    let (field, _) = refusal(&with("callback", json!({ "metadata": [1] })));
    assert_eq!(field, "callback.metadata");
}

/// serde would take the elements for the fields, in their order.
#[test]
fn an_array_is_no_object() {
    for (field, given, named) in [
        ("callback", json!([null, {}]), "callback"),
        ("consent", json!(["own", "me"]), "consent"),
        ("output", json!(["p/", "png", null]), "output"),
        ("watermark", json!(["Ada", null, null]), "watermark"),
        ("init_image", json!(["s3://bucket/a.png"]), "init_image"),
        ("lora", json!([["s3://bucket/a.safetensors", 1.0, null, null]]), "lora[0]"),
        ("embeddings", json!([["s3://bucket/a.safetensors", "word"]]), "embeddings[0]"),
        ("controlnets", json!([["canny", { "url": "s3://bucket/a.png" }]]), "controlnets[0]"),
        ("controlnets", json!([{ "name": "canny", "image": ["s3://bucket/a.png"] }]), "controlnets[0].image"),
    ] {
        let mut body = json!({ "job_id": "job-1", "prompt": "a mug" });
        body[field] = given;
        let (at, message) = refusal(&body);
        assert_eq!(at, named);
        assert!(message.contains("must be an object, got ["), "{message}");
    }
}

#[test]
fn metadata_that_are_too_large_are_refused_to_the_callback_and_not_repeated() {
    let large = json!({ "url": "https://backend.example/hook", "metadata": { "text": "x".repeat(40 << 20) } });
    let body = json!({ "job_id": "job-1", "prompt": "a mug", "callback": large }).to_string();
    let refusal = Job::from_json(body.as_bytes(), &contract()).expect_err("too large");
    assert_eq!(refusal.job_id.as_ref().map(atelier::job::JobId::as_str), Some("job-1"));
    assert!(refusal.error.to_string().contains("at most 65536 bytes as JSON"), "{}", refusal.error);
    let callback = refusal.callback.expect("its address can be read");
    assert!(callback.url.is_some() && callback.metadata.as_str() == "{}");
}

#[test]
fn a_body_that_is_too_much_to_parse_is_refused_before_it_is_parsed() {
    let body = format!("{{\"job_id\":\"job-1\",\"lora\":[{}1]}}", "[],".repeat(1 << 20));
    let refusal = Job::from_json(body.as_bytes(), &contract()).expect_err("too much");
    assert!(refusal.error.to_string().contains("at most 1000000 bytes outside of its texts"), "{}", refusal.error);
}
