//! A signer that verifiers would refuse is refused at start, in words that name the setting and what is wrong.

use std::path::PathBuf;

use atelier::content_credentials::ready;
use atelier::content_credentials::settings::Settings;
use atelier::setting::Secret;
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::authority::{Authority, parameters};
use super::settings;

/// What is said of these settings.
fn said(settings: &Settings) -> String {
    match ready::signing(settings) {
        Ok(signing) => panic!("was taken: {:?}", signing.map(|signing| signing.subject)),
        Err(error) => error.to_string(),
    }
}

fn issued(change: impl FnOnce(&mut rcgen::CertificateParams)) -> String {
    said(&settings(&Authority::issuing(change)))
}

fn self_signed() -> String {
    let key = KeyPair::generate().expect("a key");
    let mut leaf = parameters("alone");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    let leaf = leaf.self_signed(&key).expect("a certificate").pem();
    said(&Settings { certificate: Some(leaf), private_key: Some(Secret::new(&key.serialize_pem())), ..Settings::default() })
}

#[test]
fn a_certificate_that_verifiers_would_refuse_is_named() {
    let now = OffsetDateTime::now_utc();
    for (problem, words) in [
        (issued(|leaf| leaf.not_after = now - Duration::hours(1)), ["CN=tests signer", "expired on "]),
        (issued(|leaf| leaf.not_before = now + Duration::hours(1)), ["CN=tests signer", "is valid from "]),
        (issued(|leaf| leaf.extended_key_usages.clear()), ["has no extended key usage", "1.3.6.1.4.1.62558.2.1"]),
        (
            issued(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            ["is for something else", "document signing"],
        ),
        (issued(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]), ["may be used for anything", "forbids"]),
        (
            issued(|leaf| leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::TimeStamping)),
            ["for timestamps or OCSP answers", "of their own"],
        ),
        (issued(|leaf| leaf.key_usages.clear()), ["digitalSignature", "no verifier"]),
        (issued(|leaf| leaf.use_authority_key_identifier_extension = false), ["authorityKeyIdentifier", "no verifier"]),
        (
            issued(|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            ["certificate authority's own", "one that signs"],
        ),
        // What no check here knows shows when a first image is signed and verified.
        (
            issued(|leaf| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
                unknown.set_criticality(true);
                leaf.custom_extensions.push(unknown);
            }),
            ["cannot be signed", "the certificate is invalid"],
        ),
        (self_signed(), ["is self-signed", "have a certificate authority issue"]),
    ] {
        assert!(problem.starts_with("content_credentials.certificate: "), "{problem}");
        for word in words {
            assert!(problem.contains(word), "{word:?}: {problem}");
        }
    }
}

#[test]
fn a_chain_in_another_order_or_with_a_gap_is_named() {
    let good = Authority::good();
    let other = Authority::good();
    for (certificate, word) in [
        (format!("{}{}", good.root, good.leaf), "turn the order round"),
        (format!("{}{}", good.leaf, good.root), "each must be followed by the one that issued it"),
        (format!("{}{}", good.chain, good.key), "must hold certificates alone, and holds a `PRIVATE KEY`"),
        (String::from("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "certificate 1 cannot be read"),
        (String::from("certificate"), "must be PEM"),
        (String::new(), "must be PEM"),
    ] {
        let problem = said(&Settings { certificate: Some(certificate), ..settings(&good) });
        assert!(problem.starts_with("content_credentials.certificate: ") && problem.contains(word), "{word:?}: {problem}");
    }
    // Without the issuers a chain is whole to who has them.
    let alone = Settings { certificate: Some(good.leaf.clone()), ..settings(&good) };
    assert!(ready::signing(&alone).is_ok());
    assert!(ready::signing(&settings(&other)).is_ok());
}

#[test]
fn a_key_that_is_another_or_in_another_form_is_named_and_never_shown() {
    let good = Authority::good();
    let relabelled = |label: &str| good.key.replace("PRIVATE KEY", label);
    let rsa = Authority::of(&rcgen::PKCS_RSA_SHA256, |_| ());
    for (key, word) in [
        (Authority::good().key, "is not the key of the certificate that signs"),
        (rsa.key, "cannot be used with the certificate's algorithm"),
        (relabelled("EC PRIVATE KEY"), "openssl pkcs8 -topk8"),
        (relabelled("ENCRYPTED PRIVATE KEY"), "is encrypted"),
        (good.chain.clone(), "must be one private key as PEM"),
        (good.key.clone() + &good.key, "must be one private key as PEM"),
        (String::from("secret"), "must be one private key as PEM"),
    ] {
        let problem = said(&Settings { private_key: Some(Secret::new(&key)), ..settings(&good) });
        assert!(problem.starts_with("content_credentials.private_key: ") && problem.contains(word), "{word:?}: {problem}");
        let shown = key.lines().filter(|line| line.len() > 40).any(|line| problem.contains(line));
        assert!(!shown && !problem.contains("secret"), "{problem}");
    }
}

#[test]
fn settings_that_are_missing_doubled_or_unreadable_are_named() {
    let good = settings(&Authority::good());
    let missing = Some(PathBuf::from("/nowhere/file.pem"));
    let directory = tempfile::tempdir().expect("a directory");
    let binary = directory.path().join("key.der");
    std::fs::write(&binary, [0xff, 0xfe]).expect("written");
    let occupied = directory.path().join("occupied");
    std::fs::write(&occupied, "a file").expect("written");
    for (settings, key, word) in [
        (Settings { private_key: None, ..good.clone() }, "private_key", "is missing: there is a certificate"),
        (Settings { certificate: None, ..good.clone() }, "certificate", "is missing: there is a private key"),
        (Settings { certificate_file: missing.clone(), ..good.clone() }, "certificate_file", "cannot stand next to"),
        (Settings { private_key_file: missing.clone(), ..good.clone() }, "private_key_file", "cannot stand next to"),
        (
            Settings { certificate: None, certificate_file: missing.clone(), ..good.clone() },
            "certificate_file",
            "/nowhere/file.pem\" cannot be read (No such file",
        ),
        (
            Settings { private_key: None, private_key_file: missing.clone(), ..good.clone() },
            "private_key_file",
            "/nowhere/file.pem\" cannot be read (No such file",
        ),
        (Settings { private_key: None, private_key_file: Some(binary), ..good.clone() }, "private_key_file", "is no text"),
        (Settings { development_directory: missing, ..good }, "development_directory", "cannot stand next to a certificate"),
        (
            Settings { development_directory: Some(occupied), ..Settings::default() },
            "development_directory",
            "the development signer cannot be kept there",
        ),
        (
            Settings { development_directory: Some("/proc/none/signer".into()), ..Settings::default() },
            "development_directory",
            "the development signer cannot be kept there",
        ),
    ] {
        let problem = said(&settings);
        assert!(problem.starts_with(&format!("content_credentials.{key}: ")) && problem.contains(word), "{word:?}: {problem}");
    }
    assert!(ready::signing(&Settings::default()).expect("nothing is wrong").is_none());
}
