//! Content credentials (C2PA 2.x): who signs, what a manifest says, and whether what is in a file verifies.
//!
//! - A signer is a certificate chain with its key, here or in AWS KMS, or a development signer that no one trusts.
//! - Of the network nothing is asked but that KMS and a timestamp authority, where they are configured: no remote manifest, no revocation list.

mod chain;
mod context;
pub mod development;
pub mod kms;
pub mod manifest;
mod network;
pub mod ready;
pub mod settings;
pub mod signing;
mod source;
pub mod timestamp;
pub mod verify;
