//! A pull from a hub: what is chosen, what is verified, and what becomes of what is half there.

use std::fs::{self, File};

use atelier::models::{How, ModelError};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use candle_core::{DType, Device};
use tempfile::TempDir;

use super::{PULLED, RESUMED, UNET, checkpoint, checksum, how, hub_of, impatient, only, parts, path, plan, pull_hub};
use crate::servers::hub::{Asked, COMMIT, Fault, Hub, TOKEN};

const BYTES: usize = 300_000;

fn content() -> Vec<u8> {
    (0..BYTES).map(|index| (index * 7 % 251) as u8).collect()
}

/// A hub with one large file, and a directory for it.
async fn one_file() -> (Hub, TempDir) {
    (Hub::start(&[(UNET, &content())]).await, tempfile::tempdir().expect("a directory"))
}

fn ranges(hub: &Hub) -> Vec<Option<String>> {
    hub.take_asked().0.into_iter().map(|asked| asked.range).collect()
}

#[tokio::test]
async fn a_repository_becomes_a_checkpoint_that_loads() {
    let mut files = checkpoint();
    for more in
        ["README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1.safetensors"]
    {
        files.push((more.to_owned(), b"not wanted".to_vec()));
    }
    let hub = hub_of(&files).await;
    let directory = tempfile::tempdir().expect("a directory");
    let pulled = pull_hub(&hub, &plan(directory.path(), [].into())).await.expect("pulled");
    assert_eq!(pulled.files.len(), checkpoint().len(), "{:?}", pulled.files.keys());
    assert_eq!(pulled.commit.as_deref(), Some(COMMIT));
    for (name, bytes) in checkpoint() {
        assert_eq!(fs::read(directory.path().join(&name)).expect("there"), bytes, "{name}");
        assert_eq!(pulled.files[&path(&name)], (checksum(&bytes), PULLED), "{name}");
    }
    StableDiffusion::load(&Settings::new(directory.path(), DType::F32, Device::Cpu)).expect("loads");
    let (to_hub, to_store) = hub.tokens();
    assert!(to_hub.iter().all(|token| token.as_deref() == Some(&format!("Bearer {TOKEN}"))), "{to_hub:?}");
    assert!(to_store.len() == 3 && to_store.iter().all(Option::is_none), "the token is the hub's alone: {to_store:?}");
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    let (hub, directory) = one_file().await;
    let unverified = only(directory.path(), &[UNET]);
    pull_hub(&hub, &unverified).await.expect("pulled");
    assert_eq!((ranges(&hub).len(), how(&pull_hub(&hub, &unverified).await.expect("again"), UNET)), (1, How::There));
    assert_eq!(hub.take_asked(), (vec![], 1), "the hub is asked which file it is");
    let verified = plan(directory.path(), [(path(UNET), Some(checksum(&content())))].into());
    assert_eq!(how(&pull_hub(&hub, &verified).await.expect("again"), UNET), How::There);
    assert_eq!(hub.take_asked(), (vec![], 0), "the manifest says all");
    fs::write(path(UNET).under(directory.path()), &content()[1..]).expect("writes");
    assert_eq!(how(&pull_hub(&hub, &verified).await.expect("mended"), UNET), PULLED);
    assert_eq!(fs::read(path(UNET).under(directory.path())).expect("there"), content());
}

#[tokio::test]
async fn a_broken_connection_is_gone_on_with() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(100_000), Fault::Status(503), Fault::CutAfter(0), Fault::CutAfter(50_000)]);
    let pulled = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)].0, checksum(&content()));
    let asked = ranges(&hub);
    assert_eq!((asked.len(), &asked[0]), (5, &None));
    let starts: Vec<usize> = asked[1..].iter().map(|range| start(range.as_deref())).collect();
    assert!(starts[0] > 0 && starts[0] == starts[1] && starts[1] == starts[2] && starts[3] > starts[2], "{starts:?}");
}

fn start(range: Option<&str>) -> usize {
    range.expect("a range").trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a number")
}

#[tokio::test]
async fn the_next_pull_goes_on_where_the_last_one_ended() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(200_000)]);
    let error = pull_hub(&hub, &impatient(only(directory.path(), &[UNET]))).await.expect_err("cut").to_string();
    assert!(error.contains("what came is kept, pull again to go on"), "{error}");
    assert!(!path(UNET).under(directory.path()).exists(), "half a file must not have the name of a whole one");
    let half = fs::metadata(&parts(directory.path(), UNET)[0]).expect("the half").len() as usize;
    hub.take_asked();
    let pulled = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)], (checksum(&content()), RESUMED));
    assert_eq!(hub.take_asked().0, [Asked { path: UNET.into(), range: Some(format!("bytes={half}-")) }]);
    assert!(half > 0 && parts(directory.path(), UNET).is_empty());
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_of_it_again() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(200_000), Fault::NoRange]);
    let pulled = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)].0, checksum(&content()));
    assert_eq!(fs::read(path(UNET).under(directory.path())).expect("there"), content());
}

#[tokio::test]
async fn halves_of_two_versions_are_never_put_together() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(200_000)]);
    pull_hub(&hub, &impatient(only(directory.path(), &[UNET]))).await.expect_err("cut");
    let other: Vec<u8> = content().into_iter().rev().collect();
    hub.put(UNET, &other);
    hub.take_asked();
    let pulled = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)], (checksum(&other), PULLED));
    assert_eq!(ranges(&hub), [None]);
    assert!(parts(directory.path(), UNET).is_empty(), "the old half is gone");
}

#[tokio::test]
async fn a_half_that_was_changed_is_thrown_away() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(200_000)]);
    pull_hub(&hub, &impatient(only(directory.path(), &[UNET]))).await.expect_err("cut");
    let half = &parts(directory.path(), UNET)[0];
    let length = fs::metadata(half).expect("there").len() as usize;
    fs::write(half, vec![0; length]).expect("writes");
    hub.take_asked();
    let pulled = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)].0, checksum(&content()));
    assert_eq!(ranges(&hub), [Some(format!("bytes={length}-")), None]);
}

#[tokio::test]
async fn a_corrupted_file_is_refused() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::Corrupt]);
    let error = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect_err("corrupt");
    assert!(matches!(error, ModelError::Differs { .. }), "{error}");
    assert!(error.to_string().contains(&checksum(&content()).to_string()), "{error}");
    assert!(!path(UNET).under(directory.path()).exists() && parts(directory.path(), UNET).is_empty());
    hub.take_asked();
    let elsewhere = plan(directory.path(), [(path(UNET), Some(checksum(b"what the manifest means")))].into());
    let error = pull_hub(&hub, &elsewhere).await.expect_err("another file");
    assert!(matches!(error, ModelError::Differs { .. }), "{error}");
    assert_eq!(hub.take_asked(), (vec![], 1), "the hub's listing was enough to see it");
}

#[tokio::test]
async fn two_pulls_do_not_write_one_file() {
    let (hub, directory) = one_file().await;
    hub.fail(UNET, &[Fault::CutAfter(200_000)]);
    pull_hub(&hub, &impatient(only(directory.path(), &[UNET]))).await.expect_err("cut");
    let half = File::open(&parts(directory.path(), UNET)[0]).expect("there");
    half.lock().expect("a lock");
    let error = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect_err("locked");
    assert!(matches!(error, ModelError::Busy { .. }), "{error}");
    drop(half);
    pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect("pulled");
}

#[tokio::test]
async fn what_a_hub_refuses_is_reported_in_words() {
    let (hub, directory) = one_file().await;
    for (status, code, words) in [
        (401, "RepoNotFound", "or not open to everyone, and the token in HF_TOKEN may not read it"),
        (403, "GatedRepo", "only for those who accepted its terms"),
        (404, "RevisionNotFound", "ada/images has no revision main"),
        (418, "", "answered 418"),
        (503, "", "answered 503"),
    ] {
        hub.refuse(status, code);
        hub.take_asked();
        let error = pull_hub(&hub, &only(directory.path(), &[UNET])).await.expect_err("refused").to_string();
        assert!(error.contains(words) && !error.contains(TOKEN), "{error}");
        assert_eq!(hub.take_asked().1, if status == 503 { 3 } else { 1 }, "{status}: what passes is tried again");
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (hub, directory) = one_file().await;
    let error = pull_hub(&hub, &plan(directory.path(), [].into())).await.expect_err("a part of a model").to_string();
    for words in ["hub ada/images@main lacks", "model_index.json", "text_encoder/*.safetensors", "vae/*.safetensors"] {
        assert!(error.contains(words), "{error}");
    }
    let error =
        pull_hub(&hub, &only(directory.path(), &[UNET, "a.json", "b.json"])).await.expect_err("two too many").to_string();
    assert!(error.ends_with("lacks a.json, b.json"), "{error}");
    hub.take_asked();
    let offline = atelier::models::Plan { offline: true, ..only(directory.path(), &[UNET, "a.json"]) };
    let error = pull_hub(&hub, &offline).await.expect_err("offline").to_string();
    assert!(error.starts_with(&format!("offline, and a.json, {UNET} would have to be fetched")), "{error}");
    assert_eq!(hub.take_asked(), (vec![], 0));
}
