//! The store against real S3 servers: what lies where, who wins a race, and which errors say what.

mod inputs;
mod permitted;
mod python;
mod records;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;

use atelier::job::Job;
use atelier::job::outcome::{JobError, Provenance, Record, RetryPolicy, StoredImage};
use atelier::job::request::Defaults;
use atelier::setting::Secret;
use atelier::store::{Settings, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::outbound::outbound;
use crate::servers::s3::{self, S3};

/// A job with the contract's defaults and what `extra` says.
pub(crate) fn job(extra: &Value) -> Job {
    let defaults: Defaults = serde_json::from_value(json!({
        "model": "sd15", "steps": 50, "guidance_scale": 7.5, "scheduler": "dpmsolver++", "width": 512, "height": 512,
        "seed": 42, "prefix": "generations/"
    }))
    .expect("defaults");
    let mut body = json!({ "job_id": "job-1", "prompt": "a lighthouse at dusk" });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    Job::from_json(body.to_string().as_bytes(), &defaults).expect("a good job")
}

pub(crate) fn record_of(job: &Job, images: Vec<StoredImage>) -> Record {
    Record {
        job_id: job.id.to_string(),
        fingerprint: job.fingerprint.clone(),
        model: "sd15".into(),
        licence: Some("CreativeML OpenRAIL-M".into()),
        images,
        provenance: Provenance::default(),
        timings_ms: BTreeMap::from([("infer".to_owned(), 1_200)]),
        finished_at_s: 1_800_000_000,
    }
}

async fn connect(settings: &Settings) -> Store {
    Store::connect(settings, outbound(&["127.0.0.1"])).await.expect("settings")
}

struct Bench {
    s3: S3,
    store: Store,
    cache: TempDir,
}

async fn bench() -> Bench {
    let s3 = S3::start(&["images", "loras"]).await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&s3.settings("images", cache.path())).await;
    Bench { s3, store, cache }
}

fn storage_problem(error: &JobError) -> &str {
    match error {
        JobError::Storage { problem, retry_policy: RetryPolicy::Wait, .. } => problem,
        other => panic!("not a storage error to be waited for: {other:?}"),
    }
}

#[tokio::test]
async fn images_and_the_record_lie_where_the_contract_says() {
    let Bench { s3, store, .. } = &bench().await;
    let job = job(&json!({ "num_images": 2 }));
    store.probe().await.expect("the bucket is there");
    assert_eq!(store.record(&job.output.prefix, &job.id).await.expect("asked"), None);
    let mut images = Vec::new();
    for (n, file) in [b"first".to_vec(), b"second".to_vec()].into_iter().enumerate() {
        images.push(store.put_image(&job, "try", n, 512, 512, 42 + n as u64, file).await.expect("stored"));
    }
    let record = record_of(&job, images);
    assert_eq!(store.put_record(&job.output.prefix, &record).await.expect("stored"), None);
    let directory = format!("generations/job-1/{}-try", &job.fingerprint[..12]);
    assert_eq!(s3.get("images", &format!("{directory}/1.png")), b"second");
    let sha256 = "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4";
    assert_eq!((record.images[1].sha256.as_deref(), record.images[1].bytes), (Some(sha256), 6));
    assert_eq!(record.images[1].content_type, "image/png");
    let read: Record = serde_json::from_slice(&s3.get("images", "generations/job-1/result.json")).expect("JSON");
    assert_eq!(read, record);
    assert_eq!(store.record(&job.output.prefix, &job.id).await.expect("asked"), Some(record));
}

#[tokio::test]
async fn a_record_of_an_earlier_release_is_read_with_its_own_keys() {
    let Bench { s3, store, .. } = &bench().await;
    let job = job(&json!({}));
    let image = json!({
        "bucket": "images", "key": "generations/job-1/0.png", "content_type": "image/png", "width_px": 512, "height_px": 512,
        "bytes": 9, "seed": 42,
    });
    let written = json!({
        "job_id": "job-1", "fingerprint": job.fingerprint, "model": "sd15", "images": [image], "timings_ms": { "infer": 1200 },
        "finished_at_s": 1_700_000_000,
    });
    s3.put("images", "generations/job-1/result.json", written.to_string().as_bytes());
    let record = store.record(&job.output.prefix, &job.id).await.expect("asked").expect("there");
    assert_eq!((record.images[0].key.as_str(), &record.images[0].sha256), ("generations/job-1/0.png", &None));
    assert_eq!(serde_json::to_value(&record).expect("JSON"), written, "and written back as it was");
}

#[tokio::test]
async fn the_first_record_stays() {
    let Bench { store, .. } = &bench().await;
    let job = job(&json!({}));
    let first = record_of(&job, Vec::new());
    let second = Record { finished_at_s: 1_800_000_001, ..first.clone() };
    assert_eq!(store.put_record("a/", &first).await.expect("stored"), None);
    assert_eq!(store.put_record("a/", &second).await.expect("answered"), Some(first.clone()));
    assert_eq!(
        store.put_record("a/", &first).await.expect("answered"),
        None,
        "our own, written by an attempt whose answer was lost"
    );
    assert_eq!(store.record("a/", &job.id).await.expect("asked"), Some(first));
}

#[tokio::test]
async fn image_addresses_are_presigned_or_public() {
    let Bench { s3, store, cache } = &bench().await;
    let job = job(&json!({}));
    let image = store.put_image(&job, "try", 0, 512, 512, 42, b"the image".to_vec()).await.expect("stored");
    let record = record_of(&job, vec![image]);
    let urls = store.urls(&record).await.expect("signed");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(&urls[0]).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "image/png");
    assert_eq!(answer.bytes().await.expect("a body").as_ref(), b"the image");
    let unsigned = urls[0].split('?').next().expect("an address");
    assert_eq!(client.get(unsigned).send().await.expect("an answer").status(), 403);

    let public = Settings { public_base_url: Some("https://cdn.example.com/".into()), ..s3.settings("images", cache.path()) };
    let urls = connect(&public).await.urls(&record).await.expect("put together");
    assert_eq!(urls, [format!("https://cdn.example.com/generations/job-1/{}-try/0.png", &job.fingerprint[..12])]);
}

#[tokio::test]
async fn a_wrong_secret_is_found_at_start_and_not_tried_again() {
    let Bench { s3, cache, .. } = &bench().await;
    let wrong = Settings { secret_access_key: Some(Secret::new("wrong")), ..s3.settings("images", cache.path()) };
    let error = connect(&wrong).await.probe().await.expect_err("must be refused");
    let problem = storage_problem(&error);
    assert!(problem.contains("access to s3://images/ was denied (SignatureDoesNotMatch"), "{problem}");
    assert!(problem.contains("s3:ListBucket"), "{problem}");
    assert_eq!(s3.take_requests().len(), 1);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let Bench { s3, cache, .. } = &bench().await;
    let store = connect(&s3.settings("nowhere", cache.path())).await;
    let error = store.probe().await.expect_err("must fail");
    assert!(storage_problem(&error).starts_with("there is no bucket \"nowhere\" at http://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_down_is_named_and_the_job_comes_back() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&Settings { max_attempts: 2, ..s3::settings(port, "images", cache.path()) }).await;
    let error = store.record("", &job(&json!({})).id).await.expect_err("must fail");
    assert!(storage_problem(&error).starts_with(&format!("http://{port} could not be reached")), "{error}");
}

#[tokio::test]
async fn throttling_and_server_errors_are_tried_again() {
    let Bench { s3, store, .. } = &bench().await;
    s3.fail_next(&[503, 500]);
    store.put_image(&job(&json!({})), "try", 0, 8, 8, 1, b"image".to_vec()).await.expect("the third attempt");
    let key = format!("generations/job-1/{}-try/0.png", &job(&json!({})).fingerprint[..12]);
    assert_eq!(s3.take_requests(), [format!("PUT /images/{key}"), format!("PUT /images/{key}"), format!("PUT /images/{key}")]);
    assert_eq!(s3.get("images", &key), b"image");
    s3.fail_next(&[503; 4]);
    let error = store.probe().await.expect_err("four attempts at most");
    assert!(storage_problem(&error).contains("SlowDown"), "{error}");
    assert_eq!(s3.take_requests().len(), 4);
}

#[tokio::test]
async fn what_is_not_there_is_asked_for_once() {
    let Bench { s3, store, .. } = &bench().await;
    assert_eq!(store.record("", &job(&json!({})).id).await.expect("asked"), None);
    assert_eq!(s3.take_requests().len(), 1);
}

#[tokio::test]
async fn something_else_in_the_records_place_is_reported() {
    let Bench { s3, store, .. } = &bench().await;
    s3.put("images", "a/job-1/result.json", b"{\"not\": \"a record\"}");
    let error = store.record("a/", &job(&json!({})).id).await.expect_err("no record");
    assert_eq!(error.retry_policy(), RetryPolicy::Terminal);
    let text = error.to_string();
    assert!(text.contains("s3://images/a/job-1/result.json is no record of a job (missing field `job_id`"), "{text}");
}

#[tokio::test]
async fn wrong_settings_are_named_at_start() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    let good = s3::settings(([127, 0, 0, 1], 9).into(), "images", cache.path());
    let wrong = [
        (Settings { bucket: String::new(), ..good.clone() }, "store.bucket"),
        (Settings { presign_seconds: 604_801, ..good.clone() }, "store.presign_seconds"),
        (Settings { endpoint_url: Some("127.0.0.1:9000".into()), ..good.clone() }, "store.endpoint_url"),
        (Settings { public_base_url: Some("cdn.example.com".into()), ..good.clone() }, "store.public_base_url"),
        (Settings { secret_access_key: None, ..good.clone() }, "store.secret_access_key"),
        (Settings { access_key_id: None, ..good.clone() }, "store.access_key_id"),
        (with_cache(&good, Path::new("/dev/null/x")), "store.cache.directory"),
    ];
    for (settings, setting) in wrong {
        let error = Store::connect(&settings, outbound(&[])).await.expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
    assert!(!format!("{good:?}").contains(s3::SECRET_ACCESS_KEY), "a secret in the log");
}

fn with_cache(settings: &Settings, directory: &Path) -> Settings {
    let mut settings = settings.clone();
    directory.clone_into(&mut settings.cache.directory);
    settings
}

fn stored_answer(body: &str) -> crate::servers::http::Answer {
    crate::servers::http::Answer::with(200, &[("content-type", "application/json"), ("etag", "\"one\"")], body)
}

async fn behind(server: &crate::servers::http::HttpServer, cache: &Path) -> Store {
    let settings = Settings {
        bucket: "images".into(),
        region: Some("us-east-1".into()),
        endpoint_url: Some(server.url("/").to_string()),
        force_path_style: true,
        access_key_id: Some("test".into()),
        secret_access_key: Some(Secret::new("test")),
        operation_timeout_ms: 300,
        max_attempts: 1,
        cache: atelier::store::cache::Settings { directory: cache.to_owned(), ..atelier::store::cache::Settings::default() },
        ..Settings::default()
    };
    connect(&settings).await
}

#[tokio::test]
async fn one_wrong_answer_for_a_record_is_not_final() {
    let job = job(&json!({}));
    let record = record_of(&job, Vec::new());
    let right = stored_answer(&json!(record).to_string());
    let cache = tempfile::tempdir().expect("a temporary directory");
    let server =
        crate::servers::http::HttpServer::start(&[stored_answer("<html>a proxy's page</html>"), stored_answer(""), right])
            .await;
    let store = behind(&server, cache.path()).await;
    assert_eq!(store.record("a/", &job.id).await.expect("the third answer is right"), Some(record));
    server.script(&[stored_answer("<html></html>")]);
    let error = store.record("a/", &job.id).await.expect_err("it stays wrong");
    assert!(matches!(error, JobError::Storage { retry_policy: RetryPolicy::Terminal, .. }), "{error:?}");
}

#[tokio::test]
async fn a_store_whose_answer_never_ends_is_left() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    let server = crate::servers::http::HttpServer::start(&[crate::servers::http::Answer::Stall]).await;
    let store = behind(&server, cache.path()).await;
    let job = job(&json!({}));
    let asked = tokio::time::timeout(crate::servers::DEADLINE, store.record("a/", &job.id));
    let error = asked.await.expect("an answer in time").expect_err("it never ends");
    let problem = storage_problem(&error);
    assert!(problem.contains("was not complete after 300 ms") || problem.contains("broke off"), "{problem}");
}
