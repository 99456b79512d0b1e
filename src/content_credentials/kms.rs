//! A key that never leaves AWS KMS: each image's claim is hashed here and signed there.

use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::sign::SignError;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use c2pa::SigningAlg;
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::network::Network;
use crate::aws::aws_settings;
use crate::aws::error::{Reach, detail, reach};
use crate::setting::SettingError;

pub(super) const KEY: &str = "content_credentials.kms.key";

aws_settings! {
    section = "content_credentials.kms";
    /// Settings of section `content_credentials.kms`.
    #[derive(Debug, Clone, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// Id, ARN or alias of an asymmetric key for signing; without it KMS is not asked.
        pub key: Option<String>,
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key: None,
            region: None,
            endpoint_url: None,
            access_key_id: None,
            secret_access_key: None,
            connect_timeout_ms: 3_000,
            attempt_timeout_ms: 5_000,
            operation_timeout_ms: 20_000,
            max_attempts: 4,
        }
    }
}

/// A key of KMS, and how it signs.
pub(super) struct KmsKey {
    client: Client,
    id: String,
    algorithm: Algorithm,
    network: Network,
}

/// How KMS calls a signature of C2PA, and what is hashed for it.
struct Algorithm {
    spec: SigningAlgorithmSpec,
    digest: DigestOf,
}

type DigestOf = fn(&[u8]) -> Vec<u8>;

fn digest<D: Digest>(message: &[u8]) -> Vec<u8> {
    D::digest(message).to_vec()
}

impl KmsKey {
    /// `id`: the key's. Asks no one yet. To be called on a thread that may wait.
    ///
    /// # Errors
    /// Names the setting, when the certificate's key is of a kind that KMS cannot sign with here.
    pub(super) fn new(settings: &Settings, id: &str, algorithm: SigningAlg) -> Result<Self, SettingError> {
        let algorithm = Algorithm::of(algorithm).map_err(|problem| SettingError::new(KEY, problem))?;
        let network = Network::new().map_err(|problem| SettingError::new(KEY, problem))?;
        let shared = network.wait_for(async { Ok(settings.access().load().await) });
        let shared = shared.map_err(|problem| SettingError::new(KEY, problem))??;
        let client = Client::new(&shared);
        Ok(Self { client, id: id.to_owned(), algorithm, network })
    }

    /// The signature of `message`: of RSA as PKCS #1 has it, of elliptic curves in DER, which c2pa turns into the form of COSE.
    ///
    /// # Errors
    /// Names the key, what KMS said and what to do.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let request = self.client.sign().key_id(&self.id);
        // A claim with its certificates is longer than the 4,096 bytes that KMS would hash itself.
        let request = request.message_type(MessageType::Digest).message(Blob::new((self.algorithm.digest)(message)));
        let request = request.signing_algorithm(self.algorithm.spec.clone());
        self.network.wait_for(async {
            let signed = request.send().await.map_err(|error| format!("the KMS key {}: {}", self.id, problem(&error)))?;
            let signature = signed.signature.map(Blob::into_inner);
            signature.ok_or_else(|| format!("the KMS key {}: the answer has no signature", self.id))
        })
    }
}

impl Algorithm {
    fn of(algorithm: SigningAlg) -> Result<Self, String> {
        let (spec, digest): (_, DigestOf) = match algorithm {
            SigningAlg::Es256 => (SigningAlgorithmSpec::EcdsaSha256, digest::<Sha256>),
            SigningAlg::Es384 => (SigningAlgorithmSpec::EcdsaSha384, digest::<Sha384>),
            SigningAlg::Es512 => (SigningAlgorithmSpec::EcdsaSha512, digest::<Sha512>),
            SigningAlg::Ps256 => (SigningAlgorithmSpec::RsassaPssSha256, digest::<Sha256>),
            other => {
                return Err(format!(
                    "cannot sign for a certificate of algorithm {other}: KMS hashes no message as long as a claim for it; have a \
                     certificate issued for a key of P-256, P-384, P-521 or RSA"
                ));
            }
        };
        Ok(Self { spec, digest })
    }
}

/// What KMS said, and what to do.
fn problem(error: &SdkError<SignError, HttpResponse>) -> String {
    let detail = detail(error);
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
    match (reach(error), code) {
        (Reach::NoCredentials, _) => format!(
            "no AWS credentials were found ({detail}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             content_credentials.kms.access_key_id and secret_access_key, or give the machine a role"
        ),
        (Reach::Unreachable, _) => format!("KMS could not be reached ({detail})"),
        (Reach::TimedOut, _) => "KMS did not answer in time".to_owned(),
        (_, "NotFoundException") => format!("there is no such key ({detail}); check {KEY}, and content_credentials.kms.region"),
        (_, "AccessDeniedException") => {
            format!("access was denied ({detail}); the credentials must allow kms:Sign on this key")
        }
        (_, "InvalidKeyUsageException" | "ValidationException") => {
            format!(
                "it does not sign as the certificate's key must ({detail}); it must be the key that the certificate was issued for"
            )
        }
        (_, "DisabledException" | "KMSInvalidStateException") => format!("it cannot be used ({detail}); enable it"),
        _ => detail,
    }
}
