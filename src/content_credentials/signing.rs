//! What signs in this process: a chain that was checked, its key, and until when both are good.

use std::sync::Arc;
use std::time::SystemTime;

use c2pa::{Context, Signer, SigningAlg};
use sha2::{Digest as _, Sha256};

use super::chain::Chain;
use super::context::context;
use super::source::{Kind, Source};
use crate::setting::SettingError;

/// What has been checked at start and signs from then on; clones are the same one.
#[derive(Clone)]
pub struct Signing {
    pub(super) signer: Arc<LocalSigner>,
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
        let chain = Chain::read(source, SystemTime::now())?;
        let subject = chain.subject.clone();
        let not_after = chain.not_after;
        let context = context(None).map_err(|error| SettingError::new(source.certificate.key, error))?;
        let signer = Arc::new(LocalSigner::new(chain)?);
        let certificates = signer.certs().map_err(|error| SettingError::new(source.certificate.key, error.to_string()))?;
        let certificate_sha256 = certificates.first().map(|der| base16ct::lower::encode_string(&Sha256::digest(der)));
        let certificate_sha256 = certificate_sha256.unwrap_or_default();
        Ok(Self { signer, context: Arc::new(context), is_development, subject, not_after, certificate_sha256 })
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

/// Signs in this process, and asks for no more room in a file than it needs.
pub(super) struct LocalSigner {
    signer: c2pa::BoxedSigner,
    der_bytes: usize,
}

impl LocalSigner {
    fn new(chain: Chain) -> Result<Self, SettingError> {
        let Chain { pem, der_bytes, private_key, private_key_setting, algorithm, .. } = chain;
        let signer = c2pa::create_signer::from_keys(pem.as_bytes(), private_key.reveal().as_bytes(), algorithm, None);
        let signer = signer.map_err(|error| {
            let problem = format!("cannot be used with the certificate's algorithm {algorithm}: {error}");
            SettingError::new(private_key_setting, problem)
        })?;
        Ok(Self { signer, der_bytes })
    }
}

impl Signer for LocalSigner {
    fn sign(&self, data: &[u8]) -> c2pa::Result<Vec<u8>> {
        self.signer.sign(data)
    }

    fn alg(&self) -> SigningAlg {
        self.signer.alg()
    }

    fn certs(&self) -> c2pa::Result<Vec<Vec<u8>>> {
        self.signer.certs()
    }

    /// Of a signature (RSA's has 512 bytes at most here), its headers and the chain. c2pa's own signers add 10 kB for a timestamp.
    fn reserve_size(&self) -> usize {
        const SIGNATURE_AND_HEADERS_BYTES: usize = 1_024;
        SIGNATURE_AND_HEADERS_BYTES + self.der_bytes
    }
}
