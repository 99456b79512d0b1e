//! What the clients of AWS services share: region, address, credentials, time limits and attempts.

pub mod error;
pub mod identity;

use std::time::Duration;

use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use crate::authorities;
use crate::setting::{Secret, SettingError};

/// Defines the settings of a service's section: its own fields, and next to them, with keys of their own in config.yaml, those that
/// decide where an AWS service is and who asks it. `access()` has the latter.
///
/// A nested type with `#[serde(flatten)]` would let unknown keys pass, and numbers from the environment stay texts.
macro_rules! aws_settings {
    (section = $section:literal; $(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        pub struct $name {
            /// Without it the AWS SDK looks for one (`AWS_REGION`, profile, instance), and `us-east-1` is the last resort.
            pub region: Option<String>,
            /// Address of a server that is not AWS, such as `http://127.0.0.1:9000`.
            pub endpoint_url: Option<String>,
            /// Both or none: without them the AWS SDK looks for credentials itself (environment, profile, role).
            pub access_key_id: Option<String>,
            pub secret_access_key: Option<$crate::setting::Secret>,
            /// Milliseconds to wait for a connection.
            pub connect_timeout_ms: u64,
            /// Milliseconds for one attempt.
            pub attempt_timeout_ms: u64,
            /// Milliseconds for an operation with all its attempts.
            pub operation_timeout_ms: u64,
            /// Attempts of an operation: 5xx, throttling and broken connections are tried again with backoff and jitter.
            pub max_attempts: u32,
            $($own)*
        }

        impl $name {
            /// Where the service is, and who asks it.
            #[must_use]
            pub fn access(&self) -> $crate::aws::Access {
                $crate::aws::Access {
                    section: $section,
                    region: self.region.clone(),
                    endpoint_url: self.endpoint_url.clone(),
                    access_key_id: self.access_key_id.clone(),
                    secret_access_key: self.secret_access_key.clone(),
                    connect_timeout: std::time::Duration::from_millis(self.connect_timeout_ms),
                    attempt_timeout: std::time::Duration::from_millis(self.attempt_timeout_ms),
                    operation_timeout: std::time::Duration::from_millis(self.operation_timeout_ms),
                    max_attempts: self.max_attempts,
                }
            }
        }
    };
}
pub(crate) use aws_settings;

/// Where a service is, who asks it, and how patiently.
#[derive(Debug, Clone)]
pub struct Access {
    /// Key of the settings in config.yaml, such as `store`.
    pub section: &'static str,
    /// Without it the AWS SDK looks for one (`AWS_REGION`, profile, instance), and `us-east-1` is the last resort.
    pub region: Option<String>,
    /// Address of a server that is not AWS.
    pub endpoint_url: Option<String>,
    /// Both or none: without them the AWS SDK looks for credentials itself (environment, profile, role).
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub connect_timeout: Duration,
    pub attempt_timeout: Duration,
    /// For an operation with all its attempts.
    pub operation_timeout: Duration,
    /// Attempts of an operation: 5xx, throttling and broken connections are tried again with backoff and jitter.
    pub max_attempts: u32,
}

/// Where a client's retries are counted. They are bounded per operation, and by the pauses between the attempts of a job. The SDK's own quota for a
/// process would be used up by a long outage; then every single error of the store would fail an operation, long after it is back.
#[must_use]
pub fn retry_partition() -> RetryPartition {
    RetryPartition::custom("atelier").token_bucket(TokenBucket::unlimited()).build()
}

impl Access {
    /// What a service's client is built from; talks to no service yet, but may look for a region and credentials.
    ///
    /// # Errors
    /// Names the one of the two keys that is missing next to the other.
    pub async fn load(self) -> Result<SdkConfig, SettingError> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .operation_attempt_timeout(self.attempt_timeout)
            .operation_timeout(self.operation_timeout)
            .build();
        let region = RegionProviderChain::first_try(self.region.map(Region::new)).or_default_provider().or_else("us-east-1");
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(region)
            .retry_config(RetryConfig::standard().with_max_attempts(self.max_attempts.max(1)))
            .timeout_config(timeouts);
        if let Some(bundled) = authorities::bundled() {
            let trust = TrustStore::empty().with_pem_certificate(bundled);
            let trusting = TlsContext::builder().with_trust_store(trust).build();
            let trusting =
                trusting.map_err(|error| SettingError::new(self.section, format!("TLS could not be set up: {error}")))?;
            let client = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
            loader = loader.http_client(client.tls_context(trusting).build_https());
        }
        if let Some(endpoint) = self.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        let missing = |key: &str, beside: &str| {
            Err(SettingError::new(&format!("{}.{key}", self.section), format!("must be set next to {beside}")))
        };
        match (self.access_key_id, self.secret_access_key) {
            (Some(id), Some(secret)) => {
                loader = loader.credentials_provider(Credentials::new(id, secret.reveal(), None, None, "atelier settings"));
            }
            (None, None) => {}
            (Some(_), None) => return missing("secret_access_key", "access_key_id"),
            (None, Some(_)) => return missing("access_key_id", "secret_access_key"),
        }
        Ok(loader.load().await)
    }
}
