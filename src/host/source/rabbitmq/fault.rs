//! The broker's errors, distinguished by what can be done about them.

use std::time::Duration;

use lapin::{Error, ErrorKind};

use super::super::SourceError;

/// `ACCESS_REFUSED`, `NOT_FOUND`, `RESOURCE_LOCKED`, `PRECONDITION_FAILED`, `CONTENT_TOO_LARGE` and `NOT_ALLOWED`.
const REFUSALS: [u16; 6] = [403, 404, 405, 406, 311, 530];

/// Longer than anything a working broker takes for one operation; one that has run out of memory or disk takes nothing
/// from publishers until it has some again.
const LIMIT: Duration = Duration::from_secs(15);

/// Why the broker did not do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// It never will, as things are.
    pub(super) refused: bool,
    /// It said nothing in the time that it had.
    pub(super) silent: bool,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn refused(problem: impl Into<String>) -> Self {
        Self { refused: true, silent: false, problem: problem.into() }
    }

    pub(super) fn unavailable(problem: impl Into<String>) -> Self {
        Self { refused: false, silent: false, problem: problem.into() }
    }

    pub(super) fn silent(problem: impl Into<String>) -> Self {
        Self { refused: false, silent: true, problem: problem.into() }
    }

    /// `queue`: its name in messages.
    pub(super) fn at(self, queue: &str, action: &'static str) -> SourceError {
        let queue = queue.to_owned();
        let problem = self.problem;
        if self.refused {
            SourceError::Refused { queue, action, problem }
        } else {
            SourceError::Unavailable { queue, action, problem }
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(answer) => {
                let text = answer.get_message().to_string();
                // A queue whose node is away is "not found" as well, until the node is back.
                let away = text.contains("down or inaccessible") || text.contains("failed to perform operation");
                let refused = REFUSALS.contains(&answer.get_id()) && !away;
                Self { refused, silent: false, problem: text }
            }
            ErrorKind::IOError(error) => Self::unavailable(error.to_string()),
            _ => Self::unavailable(error.to_string()),
        }
    }
}

/// Waits for the broker, but not for ever.
pub(super) async fn within<T>(operation: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(LIMIT, operation).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Fault::silent(format!("the broker did not answer within {} s", LIMIT.as_secs()))),
    }
}
