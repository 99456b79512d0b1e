//! What a check found: a state, words, and what to do about it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::shown;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    /// It works, and something can go wrong later.
    Warn,
    /// Jobs will fail.
    Fail,
    /// There is nothing to check here.
    Skip,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    /// Where the state is `warn` or `fail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), fix: None }
    }

    pub(super) fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Fail, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn skip(check: &'static str, reason: impl Into<String>) -> Self {
        Self { check, state: State::Skip, found: reason.into(), fix: None }
    }

    pub(super) fn late(check: &'static str, limit: Duration) -> Self {
        let found = format!("no answer within {} s", limit.as_secs());
        Self::fail(
            check,
            found,
            "find out what is slow or drops packets (firewall, security group, route), or allow more: --limit-s",
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
            State::Skip => "skip",
        };
        write!(f, "{state:<5} {:<12} {}", self.check, shown::one_line(&self.found))?;
        self.fix.as_ref().map_or(Ok(()), |fix| write!(f, " -> {}", shown::one_line(fix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::warn("bucket", "two\n  lines", "do\nthis");
        assert_eq!(finding.to_string(), "warn  bucket       two lines -> do this");
        assert_eq!(Finding::skip("gpu", "none").to_string(), "skip  gpu          none");
    }
}
