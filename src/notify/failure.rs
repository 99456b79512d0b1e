//! Why an attempt to deliver a notification failed, and what that says of its receiver.

use std::time::Duration;

use crate::outbound::error::OutboundError;

/// Why an attempt did not deliver.
pub(super) enum DeliveryError {
    /// The receiver asks not to be told (410).
    Unwanted,
    /// The address may not be reached, now or later.
    Refused(OutboundError),
    Failed(Undelivered),
}

/// An attempt that may succeed later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    pub problem: String,
    /// How long the receiver asks to wait.
    pub retry_after: Option<Duration>,
    /// There was no answer, or one that the receiver as such is not well: another notification would fare no better.
    pub is_down: bool,
}

impl Undelivered {
    pub(super) fn not_sent(problem: String) -> Self {
        Self { problem, retry_after: None, is_down: false }
    }

    pub(super) fn no_answer(problem: String) -> Self {
        Self { problem, retry_after: None, is_down: true }
    }
}

impl From<OutboundError> for DeliveryError {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Refused(_) => Self::Refused(error),
            other => Self::Failed(Undelivered::no_answer(other.to_string())),
        }
    }
}
