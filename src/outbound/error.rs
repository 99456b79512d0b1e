//! Why an address from a caller could not be used, and what that means for the job.

use std::net::IpAddr;

use reqwest::StatusCode;

use crate::job::outcome::JobError;
use crate::shown;

/// An address that may not be reached, whatever it would answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    #[error(
        "must be an https:// address{}, got the scheme {scheme:?}",
        if *.http_allowed { " (or http://)" } else { "" }
    )]
    Scheme { scheme: String, http_allowed: bool },
    #[error("must lead to a public address, but {host} is {address}, {what}; the operator can allow it in outbound.allow")]
    Address { host: String, address: IpAddr, what: &'static str },
}

#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("more than {max} redirects")]
    TooManyRedirects { max: u32 },
    #[error("{}", connection_problem(.0))]
    Connection(#[source] reqwest::Error),
}

impl OutboundError {
    /// As the error of the request field that held the address: what cannot succeed is abandoned, the rest is tried again.
    #[must_use]
    pub fn for_field(self, field: &str) -> JobError {
        let field = field.to_owned();
        let problem = self.to_string();
        match self {
            Self::Status(status) if !is_passing(status) => {
                let advice = "check the address, and that it has not expired or needs a login";
                JobError::Input { field, problem: format!("{problem}; {advice}"), cause: None }
            }
            Self::Refused(_) | Self::TooManyRedirects { .. } => JobError::Input { field, problem, cause: None },
            Self::Status(_) => JobError::Fetch { field, problem, cause: None },
            Self::Connection(error) => JobError::Fetch { field, problem, cause: Some(error.into()) },
        }
    }
}

/// Whether the same request can get another answer later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
}

/// reqwest hides our resolver's answer among the causes of its own error.
pub(super) fn refusal_behind(error: &reqwest::Error) -> Option<Refused> {
    shown::causes(error).find_map(|cause| cause.downcast_ref::<Refused>()).cloned()
}

fn connection_problem(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "the server did not answer in time"
    } else if error.is_connect() {
        "the server could not be reached"
    } else {
        "the connection broke"
    };
    match shown::causes(error).last() {
        Some(root) => format!("{what} ({root})"),
        None => what.to_owned(),
    }
}
