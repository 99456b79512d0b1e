//! A key in KMS signs as one that is here; what KMS refuses is said at start, in words.

use std::path::Path;
use std::process::Command;

use atelier::content_credentials::settings::Settings;
use atelier::content_credentials::signing::Signing;
use atelier::content_credentials::verify::{State, verify};
use atelier::content_credentials::{kms, ready};
use atelier::job::capabilities::Capabilities;
use atelier::protocol::reply::{self, JobOutcome};
use atelier::setting::Secret;
use atelier::workflow::Spent;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::types::{KeySpec, KeyUsageType};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
    SignatureAlgorithm,
};
use serde_json::json;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::authority::Authority;
use super::{event, generated, tasks};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::moto::Moto;
use crate::servers::python_or_skip;
use crate::stage::Stage;

/// The public half of a key of KMS.
struct Public {
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

struct Kms {
    moto: Moto,
    client: Client,
}

impl Kms {
    async fn start(venv: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/credentials/kms.py");
        let moto = Moto::of(Command::new(venv.join("bin/python")).arg(script)).await;
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", moto.address))
            .credentials_provider(Credentials::new("id", "secret", None, None, "tests"));
        Self { client: Client::from_conf(config.build()), moto }
    }

    /// A key's id, and a chain for it.
    async fn key(&self, spec: KeySpec, algorithm: &'static SignatureAlgorithm) -> (String, Authority) {
        let made = self.client.create_key().key_spec(spec).key_usage(KeyUsageType::SignVerify).send().await.expect("a key");
        let id = made.key_metadata.expect("what it is").key_id;
        let public = self.client.get_public_key().key_id(&id).send().await.expect("its public half");
        let public = public.public_key.expect("in DER").into_inner();
        let (_, parsed) = SubjectPublicKeyInfo::from_der(&public).expect("a public key");
        let bits = parsed.subject_public_key.data.to_vec();
        (id, Authority::certifying(&Public { bits, algorithm }, |_| ()))
    }

    fn settings(&self, chain: &str, key: &str) -> Settings {
        asking(chain, key, Some(format!("http://{}", self.moto.address)))
    }
}

fn asking(chain: &str, key: &str, endpoint_url: Option<String>) -> Settings {
    let kms = kms::Settings {
        key: Some(key.to_owned()),
        region: Some("us-east-1".into()),
        endpoint_url,
        access_key_id: Some("id".into()),
        secret_access_key: Some(Secret::new("secret")),
        max_attempts: 1,
        ..kms::Settings::default()
    };
    Settings { certificate: Some(chain.to_owned()), kms, ..Settings::default() }
}

/// As a process does it at start: called by async code, here on a runtime that has one thread.
fn signing(settings: &Settings) -> Result<Signing, String> {
    ready::signing(settings).map(|signing| signing.expect("one is named")).map_err(|error| error.to_string())
}

#[tokio::test]
async fn every_kind_of_key_signs_images_that_verify() {
    let Some(venv) = python_or_skip("keys in moto's KMS") else { return };
    let kms = Kms::start(&venv).await;
    let kinds = [
        (KeySpec::EccNistP256, &PKCS_ECDSA_P256_SHA256),
        (KeySpec::EccNistP384, &PKCS_ECDSA_P384_SHA384),
        (KeySpec::EccNistP521, &PKCS_ECDSA_P521_SHA512),
        (KeySpec::Rsa2048, &PKCS_RSA_SHA256),
    ];
    let (_, capabilities, body, _) = tasks().remove(0);
    for (spec, algorithm) in kinds {
        let (id, authority) = kms.key(spec.clone(), algorithm).await;
        let signing = signing(&kms.settings(&authority.chain, &id)).unwrap_or_else(|problem| panic!("{spec}: {problem}"));
        let mut stage = Stage::signing(signing, capabilities.clone(), |_| ()).await;
        let path = generated(&mut stage, "kms", &body, json!({})).await;
        let file = std::fs::read(path).expect("an image");
        let found = verify(&file, "image/png", Some(&authority.root)).expect("read").expect("credentials");
        assert_eq!(found.state, State::Trusted, "{spec}: {:?}", found.failures);
    }
}

#[tokio::test]
async fn what_kms_refuses_ends_the_start_in_words() {
    let Some(venv) = python_or_skip("what moto's KMS refuses") else { return };
    let kms = Kms::start(&venv).await;
    let (id, authority) = kms.key(KeySpec::EccNistP256, &PKCS_ECDSA_P256_SHA256).await;
    let (other, _) = kms.key(KeySpec::EccNistP256, &PKCS_ECDSA_P256_SHA256).await;
    let (larger, _) = kms.key(KeySpec::EccNistP384, &PKCS_ECDSA_P384_SHA384).await;
    let edwards = Authority::of(&PKCS_ED25519, |_| ());
    let missing = "11111111-2222-3333-4444-555555555555";
    let mut doubled = kms.settings(&authority.chain, &id);
    doubled.private_key = Some(Secret::new(&authority.key));
    let mut alone = kms.settings(&authority.chain, &id);
    alone.certificate = None;
    let mut away = kms.settings(&authority.chain, &id);
    away.kms.endpoint_url = Some("http://127.0.0.1:9".into());
    let wrong = [
        (kms.settings(&authority.chain, &other), "content_credentials.kms.key: is not the key of the certificate that signs"),
        (kms.settings(&authority.chain, &larger), "it must be the key that the certificate was issued for"),
        (kms.settings(&authority.chain, missing), "there is no such key"),
        (kms.settings(&edwards.chain, &id), "content_credentials.kms.key: cannot sign for a certificate of algorithm ed25519"),
        (doubled, "content_credentials.kms.key: cannot stand next to content_credentials.private_key"),
        (alone, "content_credentials.certificate: is missing"),
        (away, "KMS could not be reached"),
    ];
    for (settings, words) in wrong {
        let problem = signing(&settings).err().unwrap_or_else(|| panic!("not refused: {words}"));
        assert!(problem.starts_with("content_credentials.") && problem.contains(words), "{words:?}: {problem}");
    }
}

/// What moto does not refuse, in AWS's own words for it (API reference, Sign, "Errors").
#[tokio::test(flavor = "multi_thread")]
async fn what_aws_refuses_says_what_to_do() {
    let authority = Authority::good();
    let wrong = [
        ("AccessDeniedException", "the credentials must allow kms:Sign on this key"),
        ("DisabledException", "enable it"),
        ("KMSInvalidStateException", "enable it"),
        ("InvalidKeyUsageException", "it must be the key that the certificate was issued for"),
    ];
    for (code, words) in wrong {
        let body = json!({ "__type": code, "message": "so it is" }).to_string();
        let headers = [("content-type", "application/x-amz-json-1.1")];
        let server = HttpServer::start(&[Answer::with(400, &headers, &body)]).await;
        let endpoint_url = Some(format!("http://{}", server.address));
        let problem = signing(&asking(&authority.chain, "alias/images", endpoint_url)).err().expect("refused");
        let begins = "content_credentials.kms.key: an image cannot be signed: the KMS key alias/images: ";
        let says = problem.contains(words) && problem.contains(&format!("{code}, so it is, status 400"));
        assert!(problem.starts_with(begins) && says, "{code}: {problem}");
    }
}

/// No image leaves unsigned, and no job is lost: the next process says at start what is wrong.
#[tokio::test]
async fn a_kms_that_goes_away_hands_the_job_back() {
    let Some(venv) = python_or_skip("moto's KMS going away") else { return };
    let kms = Kms::start(&venv).await;
    let (id, authority) = kms.key(KeySpec::EccNistP256, &PKCS_ECDSA_P256_SHA256).await;
    let signing = signing(&kms.settings(&authority.chain, &id)).expect("a good key");
    let mut stage = Stage::signing(signing, Capabilities::Generate, |_| ()).await;
    drop(kms);
    let (_, _, mut body, _) = tasks().remove(0);
    body["job_id"] = json!("waits");
    let jobs = reply::decode(&stage.handle_for_host(event(&body)).await).expect("our own reply");
    let error = jobs[0].error.as_ref().expect("an error");
    assert_eq!((jobs[0].outcome, error.code.as_str()), (JobOutcome::Retry, "signing_failed"));
    assert!(error.message.contains(&format!("the KMS key {id}: KMS could not be reached")), "{}", error.message);
    assert_eq!(stage.handler.spent(), Some(Spent::CannotSign));
    assert!(!stage.bucket.path("generations/waits").exists(), "nothing of it is in the bucket");
}
