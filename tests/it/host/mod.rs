//! The host from outside, against real servers.

mod sqs;
