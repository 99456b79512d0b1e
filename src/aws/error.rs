//! How far a request to an AWS service got, and what was said about it.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::shown;

/// How far a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    NoCredentials,
    Unreachable,
    TimedOut,
    /// The service answered with this HTTP status.
    Answered(u16),
    /// The request could not be built, or the answer could not be read.
    Other,
}

pub fn reach<E: StdError + 'static>(error: &SdkError<E, HttpResponse>) -> Reach {
    match error {
        SdkError::TimeoutError(_) => Reach::TimedOut,
        SdkError::ServiceError(service) => Reach::Answered(service.raw().status().as_u16()),
        _ if shown::causes(error).any(<dyn StdError>::is::<CredentialsError>) => Reach::NoCredentials,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Reach::TimedOut,
        SdkError::DispatchFailure(failure) if failure.is_io() => Reach::Unreachable,
        _ => Reach::Other,
    }
}

/// The service's own code and message with the status, or the deepest cause.
pub fn detail<E: StdError + ProvideErrorMetadata + 'static>(error: &SdkError<E, HttpResponse>) -> String {
    let SdkError::ServiceError(service) = error else {
        return shown::deepest_cause(error).to_string();
    };
    let status = format!("status {}", service.raw().status().as_u16());
    let words = [service.err().code(), service.err().message(), Some(status.as_str())];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
