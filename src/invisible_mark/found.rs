//! What a reader tells of a mark.

use std::fmt;

use serde::Serialize;

use super::Method;

/// A message that was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Whose message it is.
    pub message: &'static str,
    pub method: Method,
    pub bits: usize,
    pub wrong_bits: usize,
    /// The blocks are not where they were written: the image was cut.
    pub cut: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, method, bits, wrong_bits, cut } = self;
        write!(f, "the message of {message} by {}, {wrong_bits} of {bits} bits wrong", method.as_str())?;
        if *cut { f.write_str("; the image was cut") } else { Ok(()) }
    }
}
