//! What needs `moto_server`: atomic conditional writes and 304.

use atelier::job::outcome::{Record, RetryPolicy};
use atelier::job::url::AssetUrl;
use atelier::store::fetch::InputKind;
use serde_json::json;

use super::{connect, job, record_of, storage_problem};
use crate::servers::moto::Moto;
use crate::servers::{python_or_skip, s3};

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_racers_one_writes_the_record() {
    const RACERS: u64 = 8;
    let Some(venv) = python_or_skip("the race for result.json (moto)") else { return };
    let moto = Moto::start(&venv).await;
    moto.create_bucket("images").await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&s3::settings(moto.address, "images", cache.path())).await;
    let job = job(&json!({}));
    for round in 0..5 {
        let prefix = format!("round-{round}/");
        let racers = (0..RACERS).map(|racer| {
            let store = store.clone();
            let prefix = prefix.clone();
            let record = Record { finished_at_s: racer, ..record_of(&job, Vec::new()) };
            tokio::spawn(async move { (store.put_record(&prefix, &record).await.expect("answered"), record) })
        });
        let mut winners = Vec::new();
        let mut seen = Vec::new();
        for racer in racers.collect::<Vec<_>>() {
            match racer.await.expect("no panic") {
                (None, own) => winners.push(own),
                (Some(existing), _) => seen.push(existing),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert!(seen.iter().all(|record| *record == winners[0]), "all others see the winner's record");
        assert_eq!(store.record(&prefix, &job.id).await.expect("asked").as_ref(), winners.first());
    }
}

#[tokio::test]
async fn an_unchanged_input_is_answered_with_304() {
    let Some(venv) = python_or_skip("304 for an unchanged input (moto)") else { return };
    let moto = Moto::start(&venv).await;
    moto.create_bucket("images").await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&s3::settings(moto.address, "images", cache.path())).await;
    let job = job(&json!({}));
    let image = store.put_image(&job, "try", 0, 8, 8, 1, b"an input".to_vec()).await.expect("stored");
    let asset = AssetUrl::S3 { bucket: image.bucket, key: image.key };
    let first = store.fetch(&asset, InputKind::Weights, "lora[0].url", &super::job(&json!({}))).await.expect("fetched");
    let again = store.fetch(&asset, InputKind::Weights, "lora[0].url", &super::job(&json!({}))).await.expect("still there");
    assert_eq!(first.path(), again.path());
    assert_eq!(std::fs::read(again.path()).expect("the file"), b"an input");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let Some(venv) = python_or_skip("writing to a missing bucket (moto)") else { return };
    let moto = Moto::start(&venv).await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = connect(&s3::settings(moto.address, "nowhere", cache.path())).await;
    let error = store.put_image(&job(&json!({})), "try", 0, 8, 8, 1, vec![0]).await.expect_err("no bucket");
    assert!(storage_problem(&error).starts_with("there is no bucket \"nowhere\" at http://127.0.0.1:"), "{error}");
    let asset = AssetUrl::parse("s3://elsewhere/x").expect("an address");
    let error = store.fetch(&asset, InputKind::Weights, "lora[0].url", &super::job(&json!({}))).await.expect_err("no bucket");
    assert_eq!(error.retry_policy(), RetryPolicy::Terminal);
    assert!(error.to_string().starts_with("lora[0].url: there is no bucket \"elsewhere\""), "{error}");
}
