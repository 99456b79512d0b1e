//! Which files a job may have as its inputs: those of listed buckets, and in the results bucket what is nobody else's.

use atelier::job::Job;
use atelier::job::outcome::{JobError, StoredImage};
use atelier::job::url::AssetUrl;
use atelier::store::fetch::InputKind;
use atelier::store::permitted::UnlistedBuckets;
use atelier::store::{Settings, Store};
use serde_json::{Value, json};

use super::{Bench, bench, connect, job, record_of};

async fn fetched(store: &Store, url: &str, job: &Job) -> Result<Vec<u8>, JobError> {
    let lease = store.fetch(&AssetUrl::parse(url).expect("an address"), InputKind::Weights, "init_image.url", job).await?;
    Ok(std::fs::read(lease.path()).expect("the file"))
}

async fn refusal(store: &Store, url: &str, job: &Job) -> String {
    let error = fetched(store, url, job).await.expect_err(url);
    assert!(matches!(error, JobError::Input { .. }), "{url}: {error:?}");
    error.to_string()
}

/// What lies in the results bucket besides inputs, each with a word of the refusal.
const CLOSED: [(&str, &str); 9] = [
    ("idempotency/0123.json", "idempotency/"),
    ("dead/0123.json", "dead/"),
    ("inputs/job-2/person-0123456789abcdef.png", "inputs of another job"),
    ("generations/job-2/0123456789ab-0123456789ab/0.png", "image of another job"),
    ("mine/deep/job-2/0123456789ab-0123456789ab/11.webp", "image of another job"),
    // As earlier releases named them.
    ("generations/job-3/0.png", "image of another job"),
    ("elsewhere/job-1/0.jpg", "image of another job"),
    ("generations/job-2/result.json", "record of a job"),
    ("generations/job-2/failed-0123456789ab.json", "record of a job"),
];

const OPEN: [&str; 5] = [
    "loras/ada.safetensors",
    "0.png",
    "photos/ada/1.png",
    "inputs/job-1/person-0123456789abcdef.png",
    "generations/job-1/0123456789ab-0123456789ab/0.png",
];

async fn filled() -> Bench {
    let bench = bench().await;
    for key in CLOSED.iter().map(|(key, _)| *key).chain(OPEN) {
        bench.s3.put("images", key, key.as_bytes());
    }
    for record in ["generations/job-3/result.json", "elsewhere/job-1/result.json"] {
        bench.s3.put("images", record, b"{}");
    }
    bench.s3.take_requests();
    bench
}

#[tokio::test]
async fn the_results_bucket_gives_what_is_nobody_elses() {
    let Bench { s3, store, .. } = &filled().await;
    let job = job(&json!({}));
    for (key, word) in CLOSED {
        let message = refusal(store, &format!("s3://images/{key}"), &job).await;
        assert!(message.starts_with("init_image.url: must not ") && message.contains(word), "{key}: {message}");
    }
    let asked: Vec<String> = s3.take_requests();
    assert!(asked.iter().all(|request| request.ends_with("/result.json")), "nothing was read: {asked:?}");
    for key in OPEN {
        assert_eq!(fetched(store, &format!("s3://images/{key}"), &job).await.expect(key), key.as_bytes());
    }
}

/// Both are the caller's, who may know where the images of others lie.
#[tokio::test]
async fn no_prefix_and_no_id_makes_the_images_of_others_ones_own() {
    let Bench { s3, store, .. } = &filled().await;
    let anothers = "s3://images/generations/job-2/0123456789ab-0123456789ab/0.png";
    for (id, prefix) in [
        ("generations", ""),
        ("job-2", "generations/generations/"),
        ("0123456789ab-0123456789ab", "generations/job-2/"),
        ("job-1", "generations/job-2/"),
    ] {
        let message = refusal(store, anothers, &job(&json!({ "job_id": id, "output": { "prefix": prefix } }))).await;
        assert!(message.contains("image of another job"), "{prefix}{id}: {message}");
    }
    assert!(s3.take_requests().is_empty(), "nothing was asked for");
    let own = job(&json!({ "job_id": "job-2" }));
    fetched(store, anothers, &own).await.expect("its own");
}

#[tokio::test]
async fn no_other_spelling_of_a_key_opens_it() {
    let Bench { s3, store, .. } = &filled().await;
    let job = job(&json!({}));
    let spellings = [
        "s3://images//idempotency/0123.json",
        "s3://images/idempotency//0123.json",
        "s3://images/loras/../idempotency/0123.json",
        "s3://images/./idempotency/0123.json",
        "s3://images/inputs/job-1/../job-2/person-0123456789abcdef.png",
        "s3://images/idempotency%2F0123.json",
        "s3://images/idempotenc%79/0123.json",
        "s3://images/loras/%2e%2e/idempotency/0123.json",
        "s3://images/loras%252f..%252fidempotency/0123.json",
        "s3://images/%2525252525252e/x",
        "s3://IMAGES/idempotency/0123.json",
        "s3://images/generations/job-1/../job-2/0123456789ab-0123456789ab/0.png",
        "s3://images/generations/job-1-2/0123456789ab-0123456789ab/0.png",
        "s3://images/other/job-1/0123456789ab-0123456789ab/0.png",
    ];
    for url in spellings {
        refusal(store, url, &job).await;
    }
    let endpoint = format!("http://{}", s3.address);
    for key in ["idempotency/0123.json", "loras/%2e%2e/idempotency/0123.json", "inputs/job-2/person-0123456789abcdef.png"] {
        let message = refusal(store, &format!("{endpoint}/images/{key}"), &job).await;
        assert!(message.contains("must not"), "{key}: {message}");
    }
    assert!(s3.take_requests().is_empty(), "nothing was asked for");
}

#[tokio::test]
async fn on_aws_every_address_of_the_results_bucket_is_known() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    let aws = Settings {
        bucket: "images".into(),
        region: Some("eu-west-1".into()),
        access_key_id: Some("test".into()),
        secret_access_key: Some(atelier::setting::Secret::new("test")),
        cache: atelier::store::cache::Settings {
            directory: cache.path().to_owned(),
            ..atelier::store::cache::Settings::default()
        },
        ..Settings::default()
    };
    let store = connect(&aws).await;
    let with = |url: &str| job(&json!({ "init_image": { "url": url } }));
    let key = "idempotency/0123.json";
    let hosts = [
        "images.s3.amazonaws.com/",
        "images.s3.eu-west-1.amazonaws.com/",
        "images.s3-accelerate.amazonaws.com/",
        "images.s3.dualstack.eu-west-1.amazonaws.com/",
        "images.s3.cn-north-1.amazonaws.com.cn/",
        "IMAGES.S3.amazonaws.com/",
        "s3.amazonaws.com/images/",
        "s3.eu-west-1.amazonaws.com/images/",
        "s3-eu-west-1.amazonaws.com/images/",
    ];
    for host in hosts {
        let error = store.check_inputs(&with(&format!("https://{host}{key}"))).expect_err(host);
        assert_eq!(error.field(), Some("init_image.url"), "{error}");
    }
    for url in [
        format!("https://other.s3.amazonaws.com/{key}"),
        format!("https://images.example.com/{key}"),
        format!("https://s3.amazonaws.com/other/{key}"),
        "https://images.s3.amazonaws.com/photos/ada.png".to_owned(),
        // Whoever signed it may read it without us.
        format!("https://images.s3.amazonaws.com/{key}?AWSAccessKeyId=AKIA&Expires=1800000000&Signature=abc"),
    ] {
        store.check_inputs(&with(&url)).expect(&url);
    }
    for url in ["s3://mine-abc--ol-s3/y.png", "s3://mine-abc-s3alias/y.png"] {
        let error = store.check_inputs(&with(url)).expect_err(url);
        assert!(error.to_string().contains("access point"), "{error}");
    }
}

#[tokio::test]
async fn a_presigned_image_of_another_job_is_read_by_the_signers_right() {
    let Bench { store, .. } = &filled().await;
    let image = StoredImage {
        bucket: "images".into(),
        key: CLOSED[3].0.into(),
        content_type: "image/png".into(),
        width_px: 8,
        height_px: 8,
        bytes: 1,
        seed: 1,
        sha256: None,
        invisible_mark: None,
    };
    let job = job(&json!({}));
    let signed = store.urls(&record_of(&job, vec![image])).await.expect("signed").remove(0);
    assert_eq!(fetched(store, &signed, &job).await.expect("fetched"), CLOSED[3].0.as_bytes());
    refusal(store, signed.split('?').next().expect("an address"), &job).await;
}

#[tokio::test]
async fn results_can_be_opened_and_nothing_else_with_them() {
    let Bench { s3, cache, .. } = &filled().await;
    let open = Settings { allow_results_as_inputs: true, ..s3.settings("images", cache.path()) };
    let store = connect(&open).await;
    let job = job(&json!({}));
    for (key, word) in CLOSED {
        let url = format!("s3://images/{key}");
        if word == "image of another job" {
            assert_eq!(fetched(&store, &url, &job).await.expect(key), key.as_bytes());
        } else {
            refusal(&store, &url, &job).await;
        }
    }
}

#[tokio::test]
async fn other_buckets_are_listed_or_warned_of_or_refused() {
    let Bench { s3, store, cache } = &filled().await;
    s3.put("loras", "ada", b"ada");
    let job = job(&json!({}));
    assert_eq!(fetched(store, "s3://loras/ada", &job).await.expect("in this release"), b"ada");
    let refuse = Settings { unlisted_input_buckets: UnlistedBuckets::Refuse, ..s3.settings("images", cache.path()) };
    let message = refusal(&connect(&refuse).await, "s3://loras/ada", &job).await;
    assert!(
        message.contains("must lie in the bucket images, got \"loras\"") && message.contains("store.input_buckets"),
        "{message}"
    );
    let listed = connect(&Settings { input_buckets: vec!["loras".into()], ..refuse }).await;
    assert_eq!(fetched(&listed, "s3://loras/ada", &job).await.expect("listed"), b"ada");
    assert_eq!(fetched(&listed, &format!("s3://images/{}", OPEN[3]), &job).await.expect("its own"), OPEN[3].as_bytes());
    let message = refusal(&listed, "s3://images/photos/ada/1.png", &job).await;
    assert!(message.contains("one of the buckets loras"), "the list is all there is: {message}");
    let both = connect(&Settings { input_buckets: vec!["images".into()], ..s3.settings("images", cache.path()) }).await;
    refusal(&both, "s3://images/idempotency/0123.json", &job).await;
}

/// Every kind of input is held to the rule, before anything is fetched.
#[tokio::test]
async fn every_input_of_a_job_is_looked_at() {
    let Bench { store, s3, .. } = &filled().await;
    let bad = "s3://images/idempotency/0123.json";
    let good = "s3://images/loras/ada.safetensors";
    let kinds: [(&str, Value); 11] = [
        ("lora[1].url", json!({ "lora": [{ "url": good }, { "url": bad }] })),
        ("lora[0].config_url", json!({ "lora": [{ "url": good, "config_url": bad }] })),
        ("embeddings[0].url", json!({ "embeddings": [{ "url": bad, "token": "<ada>" }] })),
        ("init_image.url", json!({ "init_image": { "url": bad } })),
        ("mask_image.url", json!({ "init_image": { "url": good }, "mask_image": { "url": bad } })),
        ("controlnets[0].image.url", json!({ "controlnets": [{ "name": "canny", "image": { "url": bad } }] })),
        ("ip_adapters[0].images[1]", json!({ "ip_adapters": [{ "name": "plus", "images": [good, bad] }] })),
        ("person", json!({ "person": bad, "garments": [good] })),
        ("garments[1]", json!({ "person": good, "garments": [good, bad] })),
        ("mask", json!({ "person": good, "garments": [good], "mask": bad })),
        ("images[2]", json!({ "task": "edit", "prompt": "a lighthouse", "images": [good, good, bad] })),
    ];
    for (field, extra) in kinds {
        let mut body = json!({ "job_id": "job-1" });
        match extra.get("person") {
            Some(_) => body["task"] = json!("tryon"),
            None => body["prompt"] = json!("a lighthouse"),
        }
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let job = Job::from_json(body.to_string().as_bytes(), &atelier::job::request::Defaults::default());
        let job = job.unwrap_or_else(|refusal| panic!("{field}: {}", refusal.error));
        let error = store.check_inputs(&job).expect_err(field);
        assert_eq!(error.field(), Some(field), "{error}");
        assert!(job.inputs().iter().any(|(name, _)| name == field));
    }
    assert!(s3.take_requests().is_empty());
}
