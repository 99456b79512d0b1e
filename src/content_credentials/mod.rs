//! Content credentials (C2PA 2.x): who signs, what a manifest says, and whether what is in a file verifies.
//!
//! - A signer is a certificate chain with its key, or a development signer that no one trusts.
//! - Nothing here reads from the network: no remote manifest, no revocation list, no timestamp authority.

mod chain;
mod context;
pub mod development;
pub mod manifest;
pub mod ready;
pub mod settings;
pub mod signing;
mod source;
pub mod verify;
