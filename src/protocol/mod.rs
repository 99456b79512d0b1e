//! What `atelier host` and its handlers say to each other beyond the Lambda Runtime API.
//!
//! - [`control`]: the host's word to a running handler, on its standard input, and the environment that announces it.
//! - [`deferral`]: what a host writes next to a message that waits, and a handler without a host reads.
//! - [`context`]: what the host puts into an invocation.
//! - [`reply`]: what a handler adds to its reply.
//! - [`report`]: what a handler says while it works, on its standard output.
//!
//! A function that names no version is someone else's: everything that it says is passed through as it is.

pub mod context;
pub mod control;
pub mod deferral;
pub mod reply;
pub mod report;

/// Changes whenever one side would misread the other. A host and its handlers speak the same one.
///
/// 2: `store_unavailable` among the outcomes of a job.
pub const VERSION: u32 = 2;

/// With this code a handler ends whose device is unusable: a fresh process is needed (`EX_TEMPFAIL` of sysexits.h).
pub const ENGINE_LOST_EXIT_CODE: u8 = 75;

/// Host and handler come from different releases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "atelier host speaks version {host} of the protocol between host and handler, this handler speaks version {handler}: \
     run both from the same release"
)]
pub struct Mismatch {
    pub host: String,
    pub handler: String,
}
