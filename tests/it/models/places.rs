//! A pull from a bucket and from a local directory.

use std::fs;
use std::path::Path;

use atelier::models::origin::Origin;
use atelier::models::source::{Place, Source};
use atelier::models::{ModelError, Plan, pull};

use super::{PULLED, RESUMED, UNET, checksum, how, impatient, only, parts, path, plan, pull_watched};
use crate::servers::s3::S3;

fn from(place: Place, plan: Plan) -> Plan {
    Plan { source: Source { place, ..plan.source }, ..plan }
}

fn bucket() -> Place {
    Place::S3 { bucket: "models".into(), prefix: "sd15/".into() }
}

async fn origin(s3: &S3, place: &Place) -> Origin {
    let settings = s3.settings("images", Path::new("unused"));
    Origin::new(place, Path::new("."), &settings, &atelier::models::hub::Settings::default()).await.expect("an origin")
}

#[tokio::test]
async fn a_bucket_is_read_and_gone_on_with() {
    let content: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let s3 = S3::start(&["models"]).await;
    s3.put("models", &format!("sd15/{UNET}"), &content);
    s3.put("models", "sd15/model_index.json", b"{}");
    s3.put("models", "other/model_index.json", b"not this one");
    let directory = tempfile::tempdir().expect("a directory");
    let plan = from(bucket(), only(directory.path(), &[UNET, "model_index.json"]));
    let origin = origin(&s3, &bucket()).await;
    s3.cut_next(&format!("/models/sd15/{UNET}"), 1_000_000);
    let error = pull(&impatient(plan.clone()), &origin, &|_| ()).await.expect_err("cut");
    assert!(matches!(error, ModelError::Broken { .. }), "{error}");
    let half = fs::metadata(&parts(directory.path(), UNET)[0]).expect("the half").len();
    assert!(half > 0 && half <= 1_000_000, "{half}");

    let (pulled, seen) = pull_watched(&origin, &plan).await;
    let pulled = pulled.expect("pulled");
    assert_eq!(pulled.files[&path(UNET)], (checksum(&content), RESUMED));
    assert_eq!(fs::read(path(UNET).under(directory.path())).expect("there"), content);
    assert_eq!(fs::read(directory.path().join("model_index.json")).expect("there"), b"{}");
    assert!(seen.contains(&half) && !seen.contains(&(half - 1)), "it began at {half}");
    assert!(seen.iter().all(|bytes| *bytes == 0 || *bytes == 2 || *bytes >= half), "nothing was fetched twice: {seen:?}");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_not_ours_is_reported_in_words() {
    let s3 = S3::start(&["models"]).await;
    let directory = tempfile::tempdir().expect("a directory");
    let elsewhere = Place::S3 { bucket: "nothing".into(), prefix: String::new() };
    let plan = from(elsewhere.clone(), plan(directory.path(), [].into()));
    let error = pull(&plan, &origin(&s3, &elsewhere).await, &|_| ()).await.expect_err("no bucket").to_string();
    assert!(error.contains("s3://nothing/ cannot be read: there is no bucket \"nothing\""), "{error}");
    let plan = from(bucket(), plan);
    let error = pull(&plan, &origin(&s3, &bucket()).await, &|_| ()).await.expect_err("an empty bucket").to_string();
    assert!(error.contains("s3://models/sd15/ lacks model_index.json"), "{error}");
}

/// The cache of `huggingface_hub` is a directory of links.
#[tokio::test]
async fn a_directory_of_links_is_copied() {
    let from_directory = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(from_directory.path().join("unet")).expect("a directory");
    fs::write(from_directory.path().join("blob"), b"weights").expect("writes");
    std::os::unix::fs::symlink(from_directory.path().join("blob"), path(UNET).under(from_directory.path())).expect("a link");
    std::os::unix::fs::symlink("..", from_directory.path().join("unet/loop")).expect("a link");
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::Directory(from_directory.path().to_owned());
    let plan = from(place.clone(), plan(directory.path(), [(path(UNET), Some(checksum(b"weights")))].into()));
    let s3 = S3::start(&[]).await;
    let pulled = pull(&plan, &origin(&s3, &place).await, &|_| ()).await.expect("copied");
    assert_eq!(how(&pulled, UNET), PULLED);
    assert!(fs::symlink_metadata(path(UNET).under(directory.path())).expect("there").is_file(), "a copy, no link");
    let gone = Place::Directory("/nowhere/at/all".into());
    let gone_plan = from(gone.clone(), only(directory.path(), &["x.json"]));
    let error = pull(&gone_plan, &origin(&s3, &gone).await, &|_| ()).await.expect_err("no directory").to_string();
    assert!(error.starts_with("/nowhere/at/all cannot be read: No such file"), "{error}");
}
