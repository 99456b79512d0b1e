//! What signs in this process: a chain that was checked, its key here or in KMS, and until when both are good.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use c2pa::{Context, Signer, SigningAlg};
use sha2::{Digest, Sha256};

use super::chain::{Chain, check_private_key};
use super::context::{context, on_a_deep_stack};
use super::kms::KmsKey;
use super::source::{Kind, PrivateKey, Source};
use super::timestamp::{self, Authority};
use crate::setting::SettingError;

/// What has been checked at start and signs from then on; clones are the same one.
#[derive(Clone)]
pub struct Signing {
    signer: Arc<ChainSigner>,
    timestamps: Option<Arc<Authority>>,
    pub(super) context: Arc<Context>,
    /// No one in particular: a development signer.
    pub is_development: bool,
    /// The name of whom the certificate was issued to.
    pub subject: String,
    /// When the first certificate of the chain expires.
    pub not_after: SystemTime,
    /// SHA-256 of the certificate that signs (DER), in hex.
    pub certificate_sha256: String,
}

impl Signing {
    /// # Errors
    /// Says in words what is wrong with the certificates or the key, as far as can be seen without signing.
    pub(super) fn new(source: &Source) -> Result<Self, SettingError> {
        let is_development = source.kind == Kind::Development;
        let setting = source.certificate.key;
        let chain = Chain::read(&source.certificate, SystemTime::now())?;
        let subject = chain.subject.clone();
        let not_after = chain.not_after;
        let certificate_sha256 = chain.der.first().map(|der| base16ct::lower::encode_string(&Sha256::digest(der)));
        let certificate_sha256 = certificate_sha256.unwrap_or_default();
        let context = context(None).map_err(|error| SettingError::new(setting, error))?;
        let timestamps = Authority::new(&source.timestamp)?.map(Arc::new);
        // Looking for AWS's region and credentials may take requests.
        let signer = on_a_deep_stack(|| ChainSigner::new(chain, &source.private_key));
        let signer = signer.map_err(|error| SettingError::new(setting, error))??;
        Ok(Self {
            signer: Arc::new(signer),
            timestamps,
            context: Arc::new(context),
            is_development,
            subject,
            not_after,
            certificate_sha256,
        })
    }

    /// For what no one keeps: a start asks no timestamp authority.
    pub(super) fn without_timestamps(&self) -> Self {
        Self { timestamps: None, ..self.clone() }
    }

    /// What signs one image.
    pub(super) fn for_one(&self) -> OneSignature<'_> {
        OneSignature { signing: self, timestamp: RefCell::new(None), problem: RefCell::new(None) }
    }

    /// Asks the timestamp authority once; none: there is none.
    #[must_use]
    pub fn try_timestamps(&self) -> Option<Result<(), String>> {
        let authority = self.timestamps.as_ref()?;
        let asked = on_a_deep_stack(|| authority.timestamp(b"atelier doctor").map(drop));
        Some(asked.and_then(|asked| asked))
    }

    /// Whether what is signed now verifies: a certificate expires while a process runs.
    ///
    /// # Errors
    /// Says since when it does not.
    pub fn check_time(&self) -> Result<(), String> {
        if SystemTime::now() < self.not_after {
            return Ok(());
        }
        Err(format!(
            "the signing certificate of {} expired on {}; give content_credentials a new one",
            self.subject,
            httpdate::fmt_http_date(self.not_after)
        ))
    }
}

/// A chain with what signs for it.
struct ChainSigner {
    key: Key,
    algorithm: SigningAlg,
    certificates: Vec<Vec<u8>>,
}

enum Key {
    Here(c2pa::BoxedSigner),
    Kms(KmsKey),
}

impl ChainSigner {
    fn new(chain: Chain, private_key: &PrivateKey) -> Result<Self, SettingError> {
        let Chain { pem, der, algorithm, .. } = chain;
        let key = match private_key {
            PrivateKey::Here(given) => {
                let wrong = |problem: String| SettingError::new(given.key, problem);
                check_private_key(given.text.reveal()).map_err(wrong)?;
                let signer = c2pa::create_signer::from_keys(pem.as_bytes(), given.text.reveal().as_bytes(), algorithm, None);
                Key::Here(
                    signer.map_err(|error| {
                        wrong(format!("cannot be used with the certificate's algorithm {algorithm}: {error}"))
                    })?,
                )
            }
            PrivateKey::Kms { settings, id } => Key::Kms(KmsKey::new(settings, id, algorithm)?),
        };
        Ok(Self { key, algorithm, certificates: der })
    }
}

/// Signs one image, asks for no more room in its file than it needs, and remembers what came of it.
pub(super) struct OneSignature<'a> {
    signing: &'a Signing,
    timestamp: RefCell<Option<Result<(), String>>>,
    problem: RefCell<Option<String>>,
}

impl OneSignature<'_> {
    /// Whether it has a timestamp, or why not; none: there is no authority.
    pub(super) fn timestamp(&self) -> Option<Result<(), String>> {
        self.timestamp.borrow().clone()
    }

    /// Why there is no signature; c2pa's own errors keep no words of others.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

impl Signer for OneSignature<'_> {
    fn sign(&self, data: &[u8]) -> c2pa::Result<Vec<u8>> {
        match &self.signing.signer.key {
            Key::Here(signer) => signer.sign(data),
            Key::Kms(key) => key.sign(data).map_err(|problem| {
                self.problem.replace(Some(problem.clone()));
                c2pa::Error::OtherError(problem.into())
            }),
        }
    }

    fn alg(&self) -> SigningAlg {
        self.signing.signer.algorithm
    }

    fn certs(&self) -> c2pa::Result<Vec<Vec<u8>>> {
        Ok(self.signing.signer.certificates.clone())
    }

    /// Of a signature (RSA's has 512 bytes at most here), its headers, the chain, and a timestamp where there is an authority.
    fn reserve_size(&self) -> usize {
        const SIGNATURE_AND_HEADERS_BYTES: usize = 1_024;
        let chain_bytes: usize = self.signing.signer.certificates.iter().map(Vec::len).sum();
        let timestamp_bytes = if self.signing.timestamps.is_some() { timestamp::MAX_BYTES } else { 0 };
        SIGNATURE_AND_HEADERS_BYTES + chain_bytes + timestamp_bytes
    }

    fn send_timestamp_request(&self, message: &[u8]) -> Option<c2pa::Result<Vec<u8>>> {
        let authority = self.signing.timestamps.as_ref()?;
        let asked = authority.timestamp(message);
        self.timestamp.replace(Some(asked.as_ref().map(|_| ()).map_err(Clone::clone)));
        asked.ok().map(Ok)
    }
}
