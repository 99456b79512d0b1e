//! S3's errors in words that say what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::SystemTime;

use aws_sdk_s3::config::Region;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use crate::aws::error::{Reach, detail, reach};
use crate::job::outcome::{JobError, RetryPolicy};

/// What was asked of S3, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// The permission it needs, such as `s3:GetObject`.
    pub(super) action: &'static str,
    pub(super) bucket: &'a str,
    /// Empty where the request is about the whole bucket.
    pub(super) key: &'a str,
    /// Empty for AWS itself.
    pub(super) endpoint: &'a str,
}

/// What went wrong, as far as it decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    NoCredentials,
    Unreachable,
    TimedOut,
    Denied,
    NoBucket,
    /// S3 itself says so: a 404 of whatever stands before it says nothing of the object.
    NoKey,
    /// The object exists already, changes right now, or did not change (412, 409, 304).
    Condition,
    /// It serves nobody now, or not so many: 429, 500, 502, 503, 504.
    Overloaded,
    /// It does not know what it is asked, or does not take it so: 400, 405, 501.
    NotUnderstood,
    Other,
}

/// S3's answer, or why there was none.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// S3's own code, message and request id, or the deepest cause.
    detail: String,
    /// When the server said so, by its own clock.
    pub(super) at: Option<SystemTime>,
    /// Where the bucket is, when S3 says that it is not where it was asked for.
    pub(super) bucket_region: Option<Region>,
    cause: Box<dyn StdError + Send + Sync>,
}

impl Failure {
    pub(super) fn new<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let kind = kind(&error);
        let detail = detail(&error);
        Self { kind, detail, at: answered_at(&error), bucket_region: bucket_region(&error), cause: error.into() }
    }

    /// As an error of the function's own bucket: it comes back, or a person can repair it, so that the job waits for it. An object that
    /// is not there does not come back.
    pub(super) fn storage(self, request: Request<'_>) -> JobError {
        let retry_policy = if self.kind == Kind::NoKey { RetryPolicy::Retry } else { RetryPolicy::Wait };
        JobError::Storage { problem: self.problem(request), retry_policy, cause: Some(self.cause) }
    }

    /// As an error of the request field that named the object: what is not there or forbidden is abandoned. A server that is away, or
    /// that serves nobody now, is not the request's fault.
    pub(super) fn input(self, field: &str, request: Request<'_>) -> JobError {
        let is_away = matches!(self.kind, Kind::NoCredentials | Kind::Unreachable | Kind::TimedOut | Kind::Overloaded);
        if is_away {
            return self.storage(request);
        }
        let field = field.to_owned();
        let problem = self.problem(request);
        let cause = Some(self.cause);
        match self.kind {
            Kind::Denied | Kind::NoBucket | Kind::NoKey => JobError::Input { field, problem, cause },
            _ => JobError::Fetch { field, problem, cause },
        }
    }

    fn problem(&self, request: Request<'_>) -> String {
        let Request { action, bucket, .. } = request;
        let detail = &self.detail;
        match self.kind {
            Kind::NoCredentials => format!(
                "no AWS credentials were found ({detail}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the \
                 function a role"
            ),
            Kind::Unreachable => format!("{} could not be reached ({detail})", request.server()),
            Kind::TimedOut => format!("{} did not answer {action} of {request} in time", request.server()),
            Kind::Denied => format!(
                "access to {request} was denied ({detail}); the credentials must be valid and allow {action} on it, and \
                 s3:ListBucket on the bucket (without it S3 calls a missing object forbidden)"
            ),
            Kind::NoBucket => format!("there is no bucket {bucket:?} at {} ({detail})", request.server()),
            Kind::NoKey => format!("{request} does not exist"),
            Kind::Condition | Kind::Overloaded | Kind::NotUnderstood | Kind::Other => {
                format!("{action} of {request} failed ({detail})")
            }
        }
    }
}

impl Request<'_> {
    /// Every answer of S3 about an object has its `ETag`: what stands before it, such as the page of a proxy, has none.
    ///
    /// # Errors
    /// Where it has none, to be waited for.
    pub(super) fn of_s3(self, e_tag: Option<&str>) -> Result<(), JobError> {
        if e_tag.is_some() {
            return Ok(());
        }
        let problem = format!(
            "{} of {self} was answered with success by something that is no S3 server (the answer has no ETag); check what stands \
             between here and {}",
            self.action,
            self.server()
        );
        Err(JobError::Storage { problem, retry_policy: RetryPolicy::Wait, cause: None })
    }

    fn server(&self) -> &str {
        if self.endpoint.is_empty() { "AWS S3" } else { self.endpoint }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

fn kind<E: StdError + ProvideErrorMetadata + 'static>(error: &SdkError<E, HttpResponse>) -> Kind {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    match (reach(error), code) {
        (Reach::NoCredentials, _) => Kind::NoCredentials,
        (Reach::Unreachable, _) => Kind::Unreachable,
        (Reach::TimedOut, _) => Kind::TimedOut,
        (Reach::Answered(_), Some("NoSuchBucket")) => Kind::NoBucket,
        (Reach::Answered(404), Some("NoSuchKey")) => Kind::NoKey,
        (Reach::Answered(304 | 409 | 412), _) => Kind::Condition,
        (Reach::Answered(401 | 403), _) => Kind::Denied,
        (Reach::Answered(429 | 500 | 502..=504), _) => Kind::Overloaded,
        (Reach::Answered(400 | 405 | 501), _) => Kind::NotUnderstood,
        (Reach::Answered(_) | Reach::Other, _) => Kind::Other,
    }
}

/// Of an error answer.
fn answered_at<E>(error: &SdkError<E, HttpResponse>) -> Option<SystemTime> {
    let date = error.raw_response()?.headers().get("date")?;
    DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?.try_into().ok()
}

/// Of an error answer: S3 names the region of a bucket that lies elsewhere with 301, 307, 400 and 403.
fn bucket_region<E>(error: &SdkError<E, HttpResponse>) -> Option<Region> {
    let named = error.raw_response()?.headers().get("x-amz-bucket-region")?;
    // It becomes a part of a host name.
    let sensible =
        (1..=32).contains(&named.len()) && named.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    sensible.then(|| Region::new(named.to_owned()))
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::error::CredentialsError;
    use aws_sdk_s3::Client;
    use aws_sdk_s3::config::{BehaviorVersion, Config, ProvideCredentials};

    use super::*;

    #[derive(Debug)]
    struct NoCredentials;

    impl ProvideCredentials for NoCredentials {
        fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let error = CredentialsError::not_loaded("no providers in chain provided credentials");
            aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
        }
    }

    #[tokio::test]
    async fn missing_credentials_are_reported_in_words() {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(NoCredentials)
            .build();
        let error = Client::from_conf(config).get_object().bucket("b").key("k").send().await.unwrap_err();
        let request = Request { action: "s3:GetObject", bucket: "b", key: "k", endpoint: "" };
        let error = Failure::new(error).storage(request);
        assert_eq!(error.retry_policy(), crate::job::outcome::RetryPolicy::Wait);
        assert!(error.to_string().starts_with("storage: no AWS credentials were found ("), "{error}");
    }
}
