//! What a signer is made of, with the settings that it comes from.

use super::{kms, timestamp};
use crate::setting::Secret;

pub(super) const DEVELOPMENT_DIRECTORY: &str = "content_credentials.development_directory";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Given,
    Development,
}

/// A text with the setting that it comes from.
pub(super) struct Given<T> {
    pub(super) key: &'static str,
    pub(super) text: T,
}

/// Where the private key is.
pub(super) enum PrivateKey {
    Here(Given<Secret>),
    /// In KMS, by this id.
    Kms {
        settings: kms::Settings,
        id: String,
    },
}

/// What a signer is made of.
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) certificate: Given<String>,
    pub(super) private_key: PrivateKey,
    pub(super) timestamp: timestamp::Settings,
}

impl PrivateKey {
    /// The setting that it comes from.
    pub(super) fn setting(&self) -> &'static str {
        match self {
            Self::Here(given) => given.key,
            Self::Kms { .. } => kms::KEY,
        }
    }
}
