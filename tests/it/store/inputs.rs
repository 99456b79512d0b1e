//! Inputs: fetched once, kept as long as they fit, refused when they are too large, too slow or not for us.

use std::path::{Path, PathBuf};
use std::time::Instant;

use atelier::job::outcome::{JobError, RetryPolicy, StoredImage};
use atelier::job::url::AssetUrl;
use atelier::setting::Secret;
use atelier::store::cache::Lease;
use atelier::store::fetch::InputKind;
use atelier::store::{Settings, Store};

use super::{Bench, bench, connect};
use crate::servers::http::{Answer, HttpServer};

const FIELD: &str = "lora[0].url";

async fn fetch(store: &Store, url: &str) -> Result<Lease, JobError> {
    store
        .fetch(&AssetUrl::parse(url).expect("an address"), InputKind::Weights, FIELD, &super::job(&serde_json::json!({})))
        .await
}

async fn refusal(store: &Store, url: &str) -> (RetryPolicy, String) {
    let error = fetch(store, url).await.expect_err("must fail");
    assert_eq!(error.field(), Some(FIELD), "{error}");
    (error.retry_policy(), error.to_string())
}

/// Every file of the cache but its lock.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("0")).expect("the cache's directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect()
}

fn text(lease: &Lease) -> String {
    std::fs::read_to_string(lease.path()).expect("the file")
}

#[tokio::test]
async fn a_file_is_downloaded_once_until_it_changes() {
    let Bench { s3, store, cache } = &bench().await;
    s3.put("loras", "ada.safetensors", b"one");
    let first = fetch(store, "s3://loras/ada.safetensors").await.expect("fetched");
    let second = fetch(store, "s3://loras/ada.safetensors").await.expect("fetched");
    assert_eq!((text(&first).as_str(), first.path()), ("one", second.path()));
    s3.put("loras", "ada.safetensors", b"two");
    let third = fetch(store, "s3://loras/ada.safetensors").await.expect("fetched");
    assert_eq!((text(&third).as_str(), text(&first).as_str()), ("two", "one"), "a job in progress keeps what it has");
    assert_eq!(files(cache.path()).len(), 2);
}

#[tokio::test]
async fn the_cache_survives_a_restart_but_not_its_debris() {
    let server = HttpServer::start(&[Answer::with(200, &[("etag", "\"one\"")], "abc"), Answer::status(304)]).await;
    let Bench { s3, store, cache } = bench().await;
    let url = server.url("/lora.safetensors").to_string();
    let kept = fetch(&store, &url).await.expect("fetched").path().to_owned();
    drop(store);
    std::fs::write(kept.with_file_name("7.part"), "half a file").expect("debris");
    std::fs::write(kept.with_file_name(format!("{}-9-61", "0".repeat(64))), "cut").expect("debris");
    let store = connect(&s3.settings("images", cache.path())).await;
    assert_eq!(files(cache.path()), std::slice::from_ref(&kept));
    let again = fetch(&store, &url).await.expect("still there");
    assert_eq!((again.path(), text(&again).as_str()), (kept.as_path(), "abc"));
    assert_eq!(server.requests()[1].header("if-none-match"), Some("\"one\""));
}

#[tokio::test]
async fn a_file_that_somebody_damaged_is_fetched_again() {
    let server = HttpServer::start(&[Answer::with(200, &[("etag", "\"one\"")], "abc")]).await;
    let Bench { store, .. } = &bench().await;
    let url = server.url("/lora").to_string();
    let path = fetch(store, &url).await.expect("fetched").path().to_owned();
    std::fs::write(path, "a").expect("damage");
    assert_eq!(text(&fetch(store, &url).await.expect("fetched")), "abc");
    assert_eq!(server.requests()[1].header("if-none-match"), None);
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_first_and_what_is_in_use_stays() {
    let Bench { s3, store, cache } = bench().await;
    drop(store);
    let mut settings = s3.settings("images", cache.path());
    settings.cache.max_bytes = 10;
    let store = connect(&settings).await;
    for name in ["a", "b", "c", "d"] {
        s3.put("loras", name, name.repeat(4).as_bytes());
    }
    let in_use = fetch(&store, "s3://loras/a").await.expect("fetched");
    let b = fetch(&store, "s3://loras/b").await.expect("fetched").path().to_owned();
    let c = fetch(&store, "s3://loras/c").await.expect("fetched").path().to_owned();
    assert!(in_use.path().exists() && !b.exists() && c.exists(), "b made room for c");
    let d = fetch(&store, "s3://loras/d").await.expect("fetched");
    let b = fetch(&store, "s3://loras/b").await.expect("fetched");
    assert_eq!(text(&in_use) + &text(&b) + &text(&d), "aaaabbbbdddd", "more than fits, all in use");
    let a_path = in_use.path().to_owned();
    let b_path = b.path().to_owned();
    drop((in_use, d));
    assert!(!a_path.exists() && b_path.exists(), "the bound holds again");
    assert!(files(cache.path()).len() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_at_once_never_lose_a_file_they_use() {
    let Bench { s3, store, cache } = bench().await;
    drop(store);
    let mut settings = s3.settings("images", cache.path());
    settings.cache.max_bytes = 250;
    let store = connect(&settings).await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        s3.put("loras", name, name.repeat(100).as_bytes());
    }
    let jobs = (0..8).map(|job| {
        let store = store.clone();
        tokio::spawn(async move {
            for turn in 0..25 {
                let name = names[(job * 3 + turn * (job + 1)) % names.len()];
                let lease = fetch(&store, &format!("s3://loras/{name}")).await.expect("fetched");
                tokio::task::yield_now().await;
                assert_eq!(text(&lease), name.repeat(100));
            }
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        job.await.expect("no panic");
    }
    let kept: u64 = files(cache.path()).iter().map(|path| path.metadata().expect("a file").len()).sum();
    assert!(kept <= 250, "{kept} bytes kept");
}

#[tokio::test]
async fn a_file_without_an_etag_is_not_kept() {
    let server = HttpServer::start(&[Answer::with(200, &[], "abc")]).await;
    let Bench { store, cache, .. } = &bench().await;
    let lease = fetch(store, server.url("/x").as_str()).await.expect("fetched");
    assert_eq!(text(&lease), "abc");
    drop(lease);
    assert!(files(cache.path()).is_empty());
}

#[tokio::test]
async fn two_processes_do_not_share_a_directory() {
    let Bench { s3, store, cache } = &bench().await;
    s3.put("loras", "a", b"aaaa");
    let other = connect(&s3.settings("images", cache.path())).await;
    let first = fetch(store, "s3://loras/a").await.expect("fetched");
    let second = fetch(&other, "s3://loras/a").await.expect("fetched");
    assert_ne!(first.path().parent(), second.path().parent());
}

#[tokio::test]
async fn the_presigned_address_of_today_finds_yesterdays_file() {
    let Bench { store, .. } = &bench().await;
    let server = HttpServer::start(&[Answer::with(200, &[("etag", "\"one\"")], "abc"), Answer::status(304)]).await;
    let signed = |signature: u8| format!("/x?AWSAccessKeyId=AKIA&Expires=180000000{signature}&Signature={signature}");
    let first = fetch(store, server.url(&signed(1)).as_str()).await.expect("fetched");
    let second = fetch(store, server.url(&signed(2)).as_str()).await.expect("fetched");
    assert_eq!(first.path(), second.path());
}

/// The server checks signatures: what is in the cache is for those alone whom it lets in.
#[tokio::test]
async fn a_forged_signature_gets_nothing_though_the_file_is_in_the_cache() {
    let Bench { s3, store, cache } = &bench().await;
    s3.put("images", "generations/job-1/0.png", b"a private file");
    let image = StoredImage {
        bucket: "images".into(),
        key: "generations/job-1/0.png".into(),
        content_type: "image/png".into(),
        width_px: 8,
        height_px: 8,
        bytes: 14,
        seed: 1,
        sha256: None,
        invisible_mark: None,
    };
    let record = super::record_of(&super::job(&serde_json::json!({})), vec![image]);
    let good = store.urls(&record).await.expect("signed").remove(0);
    assert_eq!(text(&fetch(store, &good).await.expect("fetched")), "a private file");
    assert_eq!(files(cache.path()).len(), 1);
    let (unsigned, signature) = good.split_once("X-Amz-Signature=").expect("a signature");
    let (signature, rest) = signature.split_at(64);
    let digit = if signature.starts_with('0') { "1" } else { "0" };
    let forged = format!("{unsigned}X-Amz-Signature={digit}{}{rest}", &signature[1..]);
    let identity = |url: &str| AssetUrl::parse(url).expect("an address").identity();
    assert_eq!(identity(&good), identity(&forged), "the same file");
    let (retry_policy, message) = refusal(store, &forged).await;
    assert!(retry_policy == RetryPolicy::Terminal && message.contains("403"), "{message}");
    assert!(!message.contains(&signature[1..]), "{message}");
    let bare = good.split_once('?').expect("a query").0;
    let (retry_policy, _) = refusal(store, bare).await;
    assert_eq!(retry_policy, RetryPolicy::Terminal, "without a signature as well");
}

#[tokio::test]
async fn a_bucket_in_another_region_is_asked_there_once() {
    let elsewhere = r#"<?xml version="1.0"?><Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"#;
    let moved = Answer::with(301, &[("x-amz-bucket-region", "eu-west-3")], elsewhere);
    let malformed =
        Answer::with(400, &[("x-amz-bucket-region", "ap-south-2")], "<Error><Code>AuthorizationHeaderMalformed</Code></Error>");
    for (first, region) in [(moved.clone(), "eu-west-3"), (malformed, "ap-south-2")] {
        let server = HttpServer::start(&[first, Answer::with(200, &[("etag", "\"one\"")], "abc")]).await;
        let cache = tempfile::tempdir().expect("a temporary directory");
        let store = connect(&crate::servers::s3::settings(server.address, "images", cache.path())).await;
        assert_eq!(text(&fetch(&store, "s3://far/lora").await.expect("fetched")), "abc");
        let requests = server.requests();
        let scope = |n: usize| requests[n].header("authorization").expect("signed").to_owned();
        assert_eq!(requests.len(), 2);
        assert!(!scope(0).contains(region) && scope(1).contains(&format!("/{region}/s3/aws4_request")), "{}", scope(1));
    }
    let server = HttpServer::start(&[moved]).await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&crate::servers::s3::settings(server.address, "images", cache.path())).await;
    let (_, message) = refusal(&store, "s3://far/lora").await;
    assert!(message.contains("PermanentRedirect") && server.requests().len() == 2, "{message}");
}

#[tokio::test]
async fn a_file_with_another_checksum_is_reported_as_such_and_tried_again() {
    let server = HttpServer::start(&[
        Answer::with(200, &[("etag", "\"one\""), ("x-amz-checksum-crc32", "AAAAAA==")], "abc"),
        // CRC-32 of "abc" is 0x352441c2.
        Answer::with(200, &[("etag", "\"one\""), ("x-amz-checksum-crc32", "NSRBwg==")], "abc"),
    ])
    .await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&crate::servers::s3::settings(server.address, "images", cache.path())).await;
    let (retry_policy, message) = refusal(&store, "s3://loras/a").await;
    assert!(
        retry_policy == RetryPolicy::Retry && message.contains("does not have the checksum that S3 keeps of it"),
        "{message}"
    );
    assert!(files(cache.path()).is_empty(), "nothing of it is kept");
    assert_eq!(text(&fetch(&store, "s3://loras/a").await.expect("fetched")), "abc");
}

#[tokio::test]
async fn missing_forbidden_and_foreign_objects_are_given_up_at_once() {
    let Bench { s3, store, cache } = &bench().await;
    let (retry_policy, text) = refusal(store, "s3://loras/nothing").await;
    assert_eq!((retry_policy, text.as_str()), (RetryPolicy::Terminal, "lora[0].url: s3://loras/nothing does not exist"));
    let wrong = Settings { secret_access_key: Some(Secret::new("wrong")), ..s3.settings("images", cache.path()) };
    let (retry_policy, text) = refusal(&connect(&wrong).await, "s3://loras/x").await;
    assert!(retry_policy == RetryPolicy::Terminal && text.contains("access to s3://loras/x was denied"), "{text}");
    assert_eq!(s3.take_requests().len(), 2, "none was tried again");
    let narrow = Settings { input_buckets: vec!["images".into()], ..s3.settings("images", cache.path()) };
    let (retry_policy, text) = refusal(&connect(&narrow).await, "s3://loras/x").await;
    assert_eq!(retry_policy, RetryPolicy::Terminal);
    assert_eq!(text, "lora[0].url: must lie in one of the buckets images, got \"loras\"");
    assert!(s3.take_requests().is_empty());
}

#[tokio::test]
async fn what_is_too_large_or_endless_or_too_slow_leaves_nothing_behind() {
    let Bench { s3, store, cache } = bench().await;
    drop(store);
    let settings = Settings { max_input_bytes: 100_000, input_timeout_ms: 1_000, ..s3.settings("images", cache.path()) };
    let store = connect(&settings).await;
    s3.put("loras", "large", &vec![0; 100_001]);
    let (retry_policy, text) = refusal(&store, "s3://loras/large").await;
    assert!(retry_policy == RetryPolicy::Terminal && text.contains("too large: at most 100000 bytes are allowed"), "{text}");

    // An image may be smaller, and has less time; a LoRA of the same server goes on.
    let image = Settings {
        max_input_bytes: 1 << 30,
        input_timeout_ms: 60_000,
        max_image_bytes: 1_000,
        image_timeout_ms: 500,
        ..settings
    };
    let image = connect(&image).await;
    let server = HttpServer::start(&[Answer::with(200, &[], &"x".repeat(1_001)), Answer::Stall]).await;
    for (kind, problem) in [(RetryPolicy::Terminal, "at most 1000 bytes"), (RetryPolicy::Retry, "not complete after 0.5 s")] {
        let url = AssetUrl::parse(server.url("/image.png").as_str()).expect("an address");
        let fetched = image.fetch(&url, InputKind::Image, FIELD, &super::job(&serde_json::json!({}))).await;
        let error = fetched.expect_err("must fail");
        assert!(error.retry_policy() == kind && error.to_string().contains(problem), "{error}");
    }
    let server = HttpServer::start(&[Answer::with(200, &[], &"x".repeat(1_001))]).await;
    fetch(&image, server.url("/lora.safetensors").as_str()).await.expect("no image");
    drop(image);

    let server = HttpServer::start(&[Answer::Endless]).await;
    let (retry_policy, text) = refusal(&store, server.url("/endless").as_str()).await;
    assert!(retry_policy == RetryPolicy::Terminal && text.contains("too large"), "{text}");

    for slow in [Answer::Stall, Answer::Never] {
        server.script(&[slow]);
        let started = Instant::now();
        let (retry_policy, text) = refusal(&store, server.url("/slow").as_str()).await;
        assert!(retry_policy == RetryPolicy::Retry && text.contains("was not complete after 1 s"), "{text}");
        assert!(started.elapsed().as_millis() >= 1_000);
    }
    assert!(files(cache.path()).is_empty());
}

#[tokio::test]
async fn a_file_that_breaks_off_is_tried_again_later() {
    let cut = "HTTP/1.1 200 OK\r\netag: \"one\"\r\ncontent-length: 1000\r\n\r\nonly this".to_owned();
    let server = HttpServer::start(&[Answer::Raw(cut)]).await;
    let Bench { store, cache, .. } = &bench().await;
    let (retry_policy, text) = refusal(store, server.url("/cut").as_str()).await;
    assert!(retry_policy == RetryPolicy::Retry && text.contains("broke off"), "{text}");
    assert!(files(cache.path()).is_empty());
}

#[tokio::test]
async fn the_credentials_of_a_presigned_address_are_in_no_message() {
    let server = HttpServer::start(&[Answer::status(200)]).await;
    let Bench { store, .. } = &bench().await;
    for answer in [Answer::status(404), Answer::status(503), Answer::HangUp, Answer::with(302, &[("location", "ftp://x/")], "")]
    {
        server.script(&[answer]);
        let error = fetch(store, server.url("/x?X-Amz-Signature=s3cr3t").as_str()).await.expect_err("must fail");
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
    }
}
