//! A timestamp authority, which `openssl ts` is here: with its word credentials outlive the certificate, and without it images are signed all the same.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use atelier::content_credentials::settings::Settings;
use atelier::content_credentials::signing::Signing;
use atelier::content_credentials::verify::{Credentials, State, verify};
use atelier::content_credentials::{ready, timestamp};
use atelier::job::capabilities::Capabilities;
use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{MethodRouter, post};
use c2pa::crypto::time_stamp::default_rfc3161_message;
use rcgen::{CertifiedIssuer, CustomExtension, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::authority::{Authority, parameters};
use super::{generated, settings, tasks};
use crate::servers::http::{Answer, HttpServer};
use crate::stage::Stage;

/// Signs what it is asked, by `openssl ts`, as of now.
struct TimestampAuthority {
    url: String,
    root: String,
    _home: TempDir,
}

impl TimestampAuthority {
    async fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let root = issue(home.path());
        let directory: Arc<Path> = home.path().into();
        let answering = post(move |query: Bytes| {
            let directory = Arc::clone(&directory);
            async move {
                let answer = tokio::task::spawn_blocking(move || answer(&directory, &query)).await.expect("openssl runs");
                ([(CONTENT_TYPE, "application/timestamp-reply")], answer)
            }
        });
        Self { url: served(answering).await, root, _home: home }
    }
}

/// The address of a server that answers in this way.
async fn served(answering: MethodRouter) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/tsa", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/tsa", answering)).await });
    url
}

/// Makes key and certificate of an authority, and what openssl wants to know; returns its root.
fn issue(home: &Path) -> String {
    /// `timeStamping` alone, which openssl wants to be critical (RFC 3161, section 2.3).
    const TIME_STAMPING: &[u8] = b"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x08";
    let mut root = parameters("tests timestamp root");
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("a key")).expect("a root");
    let mut leaf = parameters("tests timestamp authority");
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.use_authority_key_identifier_extension = true;
    let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 37], TIME_STAMPING.to_vec());
    usage.set_criticality(true);
    leaf.custom_extensions = vec![usage];
    let key = KeyPair::generate().expect("a key");
    let leaf = leaf.signed_by(&key, &root).expect("a certificate");
    let config = "[tsa]\ndefault_tsa = own\n[own]\nserial = serial\nsigner_digest = sha256\ndefault_policy = 1.2.3.4.1\n\
        digests = sha256\ness_cert_id_alg = sha256\nsigner_cert = leaf.pem\nsigner_key = key.pem\ncerts = root.pem\n";
    let files =
        [("root.pem", root.pem()), ("leaf.pem", leaf.pem()), ("key.pem", key.serialize_pem()), ("tsa.cnf", config.into())];
    for (name, text) in files {
        std::fs::write(home.join(name), text).expect("written");
    }
    root.pem()
}

fn answer(home: &Path, query: &[u8]) -> Vec<u8> {
    std::fs::write(home.join("query"), query).expect("written");
    let mut openssl = Command::new("openssl");
    openssl.args(["ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "answer"]).current_dir(home);
    let output = openssl.output().expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(home.join("answer")).expect("an answer")
}

fn signing(authority: &Authority, timestamp: timestamp::Settings) -> Signing {
    ready::signing(&Settings { timestamp, ..settings(authority) }).expect("a good signer").expect("one")
}

fn asking(url: &str, timeout_ms: u64) -> timestamp::Settings {
    timestamp::Settings { url: Some(url.to_owned()), timeout_ms }
}

async fn image(signing: Signing) -> Vec<u8> {
    let (_, _, body, _) = tasks().remove(0);
    let mut stage = Stage::signing(signing, Capabilities::Generate, |_| ()).await;
    let path = generated(&mut stage, "job", &body, json!({})).await;
    std::fs::read(path).expect("an image")
}

fn found(image: &[u8], roots: &str) -> Credentials {
    verify(image, "image/png", Some(roots)).expect("read").expect("credentials")
}

/// When a trusted authority says that it was signed.
fn time(found: &Credentials) -> Option<&str> {
    let active = found.manifests["active_manifest"].as_str().expect("one");
    found.manifests["manifests"][active]["signature_info"]["time"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_with_a_timestamp_outlive_the_certificate() {
    let tsa = TimestampAuthority::start().await;
    let end = OffsetDateTime::now_utc() + Duration::seconds(8);
    let authority = Authority::issuing(|leaf| leaf.not_after = end);
    let stamping = signing(&authority, asking(&tsa.url, 5_000));
    assert_eq!(stamping.try_timestamps(), Some(Ok(())));
    let stamped = image(stamping).await;
    let bare = image(signing(&authority, timestamp::Settings::default())).await;
    let roots = format!("{}{}", authority.root, tsa.root);
    let fresh = found(&stamped, &roots);
    assert_eq!((fresh.state, found(&bare, &roots).state), (State::Trusted, State::Trusted), "{:?}", fresh.failures);
    assert!(time(&fresh).is_some() && time(&found(&bare, &roots)).is_none(), "{:#}", fresh.manifests);
    while OffsetDateTime::now_utc() < end + Duration::seconds(1) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let expired = found(&bare, &roots);
    assert!(expired.failures.iter().any(|failure| failure.code == "signingCredential.expired"), "{:?}", expired.failures);
    let late = found(&stamped, &roots);
    assert_eq!(late.state, State::Trusted, "{:?}", late.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_gets_no_timestamp_is_signed_without() {
    let tsa = TimestampAuthority::start().await;
    let authority = Authority::good();
    let reply = |body: &str| Answer::with(200, &[("content-type", "application/timestamp-reply")], body);
    let wrong = [
        (Answer::Never, "gave no timestamp"),
        (Answer::HangUp, "gave no timestamp"),
        (Answer::Endless, "gave no timestamp"),
        (Answer::status(503), "503"),
        (reply("no answer at all"), "gave no timestamp"),
        (reply(&"x".repeat(20_000)), "more than 10240 bytes"),
    ];
    for (answer, words) in wrong {
        let server = HttpServer::start(std::slice::from_ref(&answer)).await;
        let url = format!("http://{}/tsa", server.address);
        let signing = signing(&authority, asking(&url, 300));
        assert_eq!(server.requests().len(), 0, "a start waits for no authority");
        let problem = signing.try_timestamps().expect("there is an authority").expect_err("no timestamp");
        assert!(
            problem.starts_with(&format!("the timestamp authority {url} ")) && problem.contains(words),
            "{answer:?}: {problem}"
        );
        let found = found(&image(signing).await, &format!("{}{}", authority.root, tsa.root));
        assert_eq!((found.state, time(&found)), (State::Trusted, None), "{answer:?}: {:?}", found.failures);
    }
}

/// It says how long it is twice, and the length that no one goes by is that of no memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_an_authority_makes_up_costs_no_memory_and_its_address_stays_hidden() {
    let authority = Authority::good();
    for length in ["70368744177664", "18446744073709551615"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/timestamp-reply\r\ntransfer-encoding: chunked\r\n\
                     content-length: {length}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                );
                let mut query = [0; 4096];
                let _ = connection.read(&mut query).await;
                let _ = connection.write_all(head.as_bytes()).await;
            }
        });
        let signing = signing(&authority, asking(&format!("http://ada:s3cr3t@{address}/tsa?token=s3cr3t"), 2_000));
        let problem = signing.try_timestamps().expect("there is an authority").expect_err("no timestamp");
        assert!(problem.starts_with(&format!("the timestamp authority http://{address}/tsa?... gave no")), "{problem}");
        assert!(!problem.contains("s3cr3t"), "{problem}");
        assert_eq!(found(&image(signing).await, &authority.root).state, State::Trusted);
    }
}

/// An authority that answers something else than what it was asked is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_of_something_else_is_not_taken() {
    let tsa = TimestampAuthority::start().await;
    let query = default_rfc3161_message(b"something else").expect("a query");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let reply = client.post(&tsa.url).body(query).send().await.expect("an answer").bytes().await.expect("a body");
    let replaying = post(move || async move { ([(CONTENT_TYPE, "application/timestamp-reply")], reply) });
    let url = served(replaying).await;
    let problem =
        signing(&Authority::good(), asking(&url, 2_000)).try_timestamps().expect("there is one").expect_err("another's");
    assert!(problem.contains("nonce"), "{problem}");
}

#[test]
fn what_is_no_address_is_refused_at_start() {
    let authority = Authority::good();
    for url in ["timestamp.example.com", "ftp://timestamp.example.com", ""] {
        let settings = Settings { timestamp: asking(url, 300), ..settings(&authority) };
        let problem = ready::signing(&settings).err().expect("must be refused").to_string();
        assert!(problem.starts_with("content_credentials.timestamp.url: must be an address such as"), "{problem}");
        // Also where no one signs yet.
        let alone = Settings { timestamp: asking(url, 300), ..Settings::default() };
        assert_eq!(ready::signing(&alone).err().expect("must be refused").to_string(), problem);
    }
}
