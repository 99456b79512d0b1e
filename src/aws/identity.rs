//! Who asks, as far as the provider chain knows: for a person who looks into a configuration, not for requests.

use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;

use crate::shown;

/// Credentials without what must stay secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The last four characters of the access key's id.
    pub key_ends_in: String,
    /// Temporary ones end; those of a role are renewed before.
    pub expires: Option<SystemTime>,
    pub region: String,
}

/// Asks the provider chain once.
///
/// # Errors
/// The chain's own words, down to the deepest cause.
pub async fn identity(shared: &SdkConfig) -> Result<Identity, String> {
    let provider = shared.credentials_provider().ok_or("no provider of credentials is set up")?;
    let credentials = provider.provide_credentials().await.map_err(|error| shown::deepest_cause(&error).to_string())?;
    let id = credentials.access_key_id();
    let ending = id.char_indices().rev().nth(3).filter(|(at, _)| *at >= 8).map_or("", |(at, _)| &id[at..]);
    let region = shared.region().map(ToString::to_string).unwrap_or_default();
    Ok(Identity { key_ends_in: ending.to_owned(), expires: credentials.expiry(), region })
}
