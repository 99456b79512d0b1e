//! What a signer is made of, with the settings that it comes from.

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

/// What a signer is made of.
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) certificate: Given<String>,
    pub(super) private_key: Given<Secret>,
}
