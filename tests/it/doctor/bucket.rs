//! A bucket that is missing, forbidden, away, or takes what it must refuse.

use super::{BUCKET, examined};
use crate::servers::s3::{Quirk, S3};

#[tokio::test]
async fn a_missing_bucket_is_named() {
    let s3 = S3::start(&[]).await;
    let report = examined(&s3, &[], &[]).await;
    assert_eq!(report.code, Some(1));
    report.expect("bucket", "fail", r#"there is no bucket "images""#);
    report.expect("clock", "ok", "that of S3");
}

#[tokio::test]
async fn wrong_credentials_are_classify_from_none() {
    let s3 = S3::start(&[BUCKET]).await;
    let wrong = examined(&s3, &[("AWS_SECRET_ACCESS_KEY", "wrong")], &[]).await;
    wrong.expect("credentials", "ok", "found");
    wrong.expect("bucket", "fail", "was denied");
    let none = examined(&s3, &[("AWS_SECRET_ACCESS_KEY", ""), ("AWS_ACCESS_KEY_ID", "")], &[]).await;
    none.expect("credentials", "fail", "give the function a role");
    none.expect("bucket", "fail", "no AWS credentials were found");
}

#[tokio::test]
async fn a_server_that_is_away_keeps_no_other_check_from_its_answer() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[("ATELIER__STORE__ENDPOINT_URL", "http://127.0.0.1:9")], &[]).await;
    assert_eq!(report.code, Some(1));
    report.expect("bucket", "fail", "could not be reached");
    report.expect("clock", "skip", "could not be asked");
    report.expect("model", "ok", "tiny-sd");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let s3 = S3::start(&[BUCKET]).await;
    let silent = crate::servers::http::HttpServer::start(&[crate::servers::http::Answer::Never]).await;
    let address = format!("http://{}", silent.address);
    let report = examined(&s3, &[("ATELIER__STORE__ENDPOINT_URL", &address)], &["--limit-s", "1"]).await;
    report.expect("bucket", "fail", "no answer within 1 s");
    report.expect("spool", "ok", "free");
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_warned_of() {
    let s3 = S3::start(&[BUCKET]).await;
    s3.behave(Quirk::IgnoresConditions);
    let report = examined(&s3, &[], &[]).await;
    assert_eq!(report.code, Some(0), "{}", report.said);
    report.expect("bucket", "warn", "ignores If-None-Match");
}

#[tokio::test]
async fn a_missing_permission_is_named_and_the_probe_is_deleted() {
    let s3 = S3::start(&[BUCKET]).await;
    let left = || std::fs::read_dir(s3.root.path().join(BUCKET).join("generations/.doctor")).map_or(0, Iterator::count);
    for (method, permission) in [("PUT", "s3:PutObject"), ("GET", "s3:GetObject")] {
        s3.behave(Quirk::Denies(method));
        let report = examined(&s3, &[], &[]).await;
        assert_eq!(report.code, Some(1), "{}", report.said);
        report.expect("bucket", "fail", permission);
        assert!(s3.take_requests().iter().any(|request| request.starts_with("DELETE ")), "{method}");
        assert_eq!(left(), 0, "{method}");
    }
    // The function never deletes: that the probe stays is no failure.
    s3.behave(Quirk::Denies("DELETE"));
    let report = examined(&s3, &[], &[]).await;
    assert_eq!(report.code, Some(0), "{}", report.said);
    report.expect("bucket", "warn", "could not be deleted");
    assert_eq!(left(), 1);
}
