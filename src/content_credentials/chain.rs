//! A certificate chain, and the form of its key: all that verifiers would refuse is said in words before anything is signed.

use std::time::{Duration, SystemTime};

use c2pa::SigningAlg;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::source::Given;
use crate::setting::SettingError;

/// Of an extended key usage that C2PA 2.x lets sign claims (section "Certificate Profiles").
const CLAIM_SIGNING: [(&str, &str); 4] = [
    ("1.3.6.1.4.1.62558.2.1", "C2PA claim signing"),
    ("1.3.6.1.5.5.7.3.36", "document signing"),
    ("1.3.6.1.5.5.7.3.4", "e-mail protection"),
    ("1.3.6.1.4.1.311.76.59.1.9", "Microsoft C2PA signing"),
];
const CERTIFICATE_LABEL: &str = "CERTIFICATE";
const PRIVATE_KEY_LABEL: &str = "PRIVATE KEY";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const P521: &str = "1.3.132.0.35";
const MIN_RSA_BITS: usize = 2_048;

/// Certificates, each issued by the next, of which the first may sign.
pub(super) struct Chain {
    /// The certificates that go into an image: the root stays out, for a verifier has it or does not trust it.
    pub(super) pem: String,
    /// The same, each in DER.
    pub(super) der: Vec<Vec<u8>>,
    pub(super) algorithm: SigningAlg,
    pub(super) subject: String,
    /// When the first of them expires.
    pub(super) not_after: SystemTime,
}

impl Chain {
    /// # Errors
    /// Names the setting, the certificate and what is wrong with it.
    pub(super) fn read(given: &Given<String>, now: SystemTime) -> Result<Self, SettingError> {
        let wrong = |problem: String| SettingError::new(given.key, problem);
        let blocks = blocks(&given.text).map_err(wrong)?;
        let mut certificates = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            if block.label != CERTIFICATE_LABEL {
                return Err(wrong(format!("must hold certificates alone, and holds a `{}`", block.label)));
            }
            let parsed = X509Certificate::from_der(&block.contents);
            let (_, certificate) =
                parsed.map_err(|error| wrong(format!("certificate {} cannot be read ({error})", index + 1)))?;
            certificates.push(certificate);
        }
        let Some(leaf) = certificates.first() else {
            return Err(wrong("must be PEM and start with -----BEGIN CERTIFICATE-----".into()));
        };
        check_order(&certificates).map_err(wrong)?;
        for certificate in &certificates {
            check_validity(certificate, now).map_err(wrong)?;
        }
        check_leaf(leaf).map_err(wrong)?;
        let algorithm = algorithm(leaf).map_err(wrong)?;
        let kept = blocks.iter().zip(&certificates).filter(|(_, certificate)| !is_self_issued(certificate));
        let kept: Vec<&Pem> = kept.map(|(block, _)| block).collect();
        let not_after = certificates.iter().map(|certificate| time(certificate.validity().not_after.timestamp())).min();
        Ok(Self {
            pem: kept.iter().map(|block| armoured(&block.contents)).collect(),
            der: kept.iter().map(|block| block.contents.clone()).collect(),
            algorithm,
            subject: leaf.subject().to_string(),
            not_after: not_after.unwrap_or(now),
        })
    }
}

fn blocks(text: &str) -> Result<Vec<Pem>, String> {
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(text.as_bytes()).collect();
    let blocks = blocks.map_err(|error| format!("is no PEM ({error})"))?;
    if blocks.is_empty() {
        return Err("must be PEM and start with -----BEGIN CERTIFICATE-----".into());
    }
    Ok(blocks)
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer() == certificate.subject()
}

/// The leaf first, each one issued by the next.
fn check_order(certificates: &[X509Certificate<'_>]) -> Result<(), String> {
    let leaf = certificates.first().filter(|leaf| is_self_issued(leaf));
    if let Some(leaf) = leaf {
        let subject = leaf.subject();
        let problem = if certificates.len() > 1 {
            format!("must start with the certificate that signs, and starts with the root {subject}: turn the order round")
        } else {
            format!("{subject} is self-signed, which C2PA forbids: have a certificate authority issue the one that signs")
        };
        return Err(problem);
    }
    let pairs = certificates.windows(2);
    match pairs.into_iter().find(|pair| pair[0].issuer() != pair[1].subject()) {
        None => Ok(()),
        Some(pair) => Err(format!(
            "{} was issued by {}, and the next certificate is {}: each must be followed by the one that issued it",
            pair[0].subject(),
            pair[0].issuer(),
            pair[1].subject()
        )),
    }
}

fn check_validity(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), String> {
    let subject = certificate.subject();
    let not_before = time(certificate.validity().not_before.timestamp());
    let not_after = time(certificate.validity().not_after.timestamp());
    if now >= not_after {
        return Err(format!("{subject} expired on {}: have it renewed", httpdate::fmt_http_date(not_after)));
    }
    if now < not_before {
        let since = httpdate::fmt_http_date(not_before);
        return Err(format!("{subject} is valid from {since} on: wait, or look at this machine's clock"));
    }
    Ok(())
}

fn time(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What C2PA asks of the certificate that signs.
fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let subject = leaf.subject();
    if leaf.is_ca() {
        return Err(format!("{subject} is a certificate authority's own: the first certificate must be one that signs"));
    }
    let usage = leaf.key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.value.digital_signature()) {
        return Err(format!("{subject} lacks the key usage digitalSignature, without which no verifier takes it"));
    }
    let has_issuer_key = leaf
        .extensions()
        .iter()
        .any(|extension| matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_)));
    if !has_issuer_key {
        return Err(format!("{subject} lacks the extension authorityKeyIdentifier, without which no verifier takes it"));
    }
    check_extended_usage(leaf)
}

fn check_extended_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let subject = leaf.subject();
    let allowed = CLAIM_SIGNING.map(|(oid, name)| format!("{name} ({oid})")).join(", ");
    let wrong = |what: &str| Err(format!("{subject} {what}: it must have one of the extended key usages {allowed}"));
    let Some(usage) = leaf.extended_key_usage().ok().flatten().map(|usage| usage.value) else {
        return wrong("has no extended key usage");
    };
    if usage.any {
        return wrong("may be used for anything, which C2PA forbids");
    }
    if usage.time_stamping || usage.ocsp_signing {
        return wrong("is for timestamps or OCSP answers, which must be signed with a certificate of their own");
    }
    let named = usage.other.iter().map(ToString::to_string);
    let has_named = named.into_iter().any(|oid| CLAIM_SIGNING.iter().any(|(allowed, _)| oid == *allowed));
    if usage.email_protection || has_named { Ok(()) } else { wrong("is for something else") }
}

/// By which the leaf's key signs; RSA's is PS256.
fn algorithm(leaf: &X509Certificate<'_>) -> Result<SigningAlg, String> {
    const ED25519: &str = "1.3.101.112";
    let key = leaf.public_key();
    if key.algorithm.algorithm.to_id_string() == ED25519 {
        return Ok(SigningAlg::Ed25519);
    }
    let unknown = || format!("{}: its key must be of P-256, P-384, P-521, Ed25519 or RSA", leaf.subject());
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() < MIN_RSA_BITS => {
            let bits = rsa.key_size();
            Err(format!("{}: its RSA key has {bits} bits, {MIN_RSA_BITS} are needed", leaf.subject()))
        }
        Ok(PublicKey::RSA(_)) => Ok(SigningAlg::Ps256),
        Ok(PublicKey::EC(_)) => {
            let curve =
                key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok()).map(|curve| curve.to_id_string());
            match curve.as_deref() {
                Some(P256) => Ok(SigningAlg::Es256),
                Some(P384) => Ok(SigningAlg::Es384),
                Some(P521) => Ok(SigningAlg::Es512),
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

/// Says what kind of key there is in place of the one form that is read. Nothing of the key itself is shown.
///
/// # Errors
/// In words, unless it is one private key in PKCS #8.
pub(super) fn check_private_key(text: &str) -> Result<(), String> {
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(text.as_bytes()).collect();
    let labels: Vec<String> = blocks.unwrap_or_default().into_iter().map(|block| block.label).collect();
    let keys: Vec<&str> = labels.iter().map(String::as_str).filter(|label| label.ends_with(PRIVATE_KEY_LABEL)).collect();
    match keys[..] {
        [PRIVATE_KEY_LABEL] if labels.len() == 1 => Ok(()),
        ["ENCRYPTED PRIVATE KEY"] => Err("is encrypted: decrypt it with `openssl pkcs8 -in KEY.pem -out NEW.pem`".into()),
        ["EC PRIVATE KEY" | "RSA PRIVATE KEY"] => Err(format!(
            "is a `{}`, and must be PKCS #8: convert it with `openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem`",
            keys[0]
        )),
        _ => Err("must be one private key as PEM and nothing else, starting with -----BEGIN PRIVATE KEY-----".into()),
    }
}

fn armoured(der: &[u8]) -> String {
    use base64::Engine as _;
    const LINE_CHARS: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(LINE_CHARS).map(|at| &text[at..(at + LINE_CHARS).min(text.len())]).collect();
    format!("-----BEGIN {CERTIFICATE_LABEL}-----\n{}\n-----END {CERTIFICATE_LABEL}-----\n", lines.join("\n"))
}
