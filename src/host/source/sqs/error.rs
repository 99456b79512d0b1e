//! SQS's errors in words that say what to do, and what they mean for the message in flight.

use std::error::Error as StdError;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

use crate::aws::error::{Reach, detail, reach};
use crate::host::source::SourceError;

/// What SQS's answer means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Passing,
    /// The receipt is worth nothing any more.
    Lost,
    NoQueue,
    Denied,
    Other,
}

/// `action` is the permission that the request needs, such as `sqs:SendMessage`; `queue` the URL that was asked.
pub(super) fn source_error<E>(queue: &str, action: &'static str, error: &SdkError<E, HttpResponse>) -> SourceError
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    let queue = queue.to_owned();
    let detail = detail(error);
    let unavailable = |problem| SourceError::Unavailable { queue: queue.clone(), action, problem };
    let refused = |problem| SourceError::Refused { queue: queue.clone(), action, problem };
    let status = match reach(error) {
        Reach::NoCredentials => {
            return refused(format!(
                "no AWS credentials were found ({detail}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 sources.sqs.access_key_id and secret_access_key, or give the machine a role"
            ));
        }
        Reach::Unreachable => return unavailable(format!("the server could not be reached ({detail})")),
        Reach::TimedOut => return unavailable("the server did not answer in time".into()),
        Reach::Other => return unavailable(detail),
        Reach::Answered(status) => status,
    };
    let service = error.as_service_error();
    let code = service.and_then(ProvideErrorMetadata::code).unwrap_or_default();
    let message = service.and_then(ProvideErrorMetadata::message).unwrap_or_default();
    match meaning(code, message, status) {
        Meaning::Passing => unavailable(detail),
        Meaning::Lost => SourceError::Lost { queue, action, problem: detail },
        Meaning::NoQueue => refused(format!(
            "there is no such queue ({detail}); check sources.sqs.queue_url, its region and its account, and that the \
             credentials may see it"
        )),
        Meaning::Denied => {
            refused(format!("access was denied ({detail}); the credentials must be valid and allow {action} on this queue"))
        }
        Meaning::Other => refused(detail),
    }
}

/// Old servers answer with the names of the query protocol (`AWS.SimpleQueueService.NonExistentQueue`), new ones with those
/// of the JSON protocol.
fn meaning(code: &str, message: &str, status: u16) -> Meaning {
    let named = |names: &[&str]| names.iter().any(|name| code.contains(name));
    if status >= 500 || status == 429 || named(&["Throttl", "OverLimit"]) {
        Meaning::Passing
    } else if named(&["ReceiptHandleIsInvalid", "MessageNotInflight"])
        // "Value … for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired."
        || (named(&["InvalidParameterValue"]) && ["ReceiptHandle", "Total VisibilityTimeout"].iter().any(|what| message.contains(what)))
    {
        Meaning::Lost
    } else if named(&["NonExistentQueue", "QueueDoesNotExist"]) {
        Meaning::NoQueue
    } else if matches!(status, 401 | 403) || named(&["AccessDenied"]) {
        Meaning::Denied
    } else {
        Meaning::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_both_protocols_mean_the_same() {
        let expired = "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
        let beyond = "Value 120 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is \
                      beyond the limit [43200 seconds]";
        for (code, message, status, expected) in [
            ("AWS.SimpleQueueService.NonExistentQueue", "", 400, Meaning::NoQueue),
            ("QueueDoesNotExist", "", 400, Meaning::NoQueue),
            ("AWS.SimpleQueueService.MessageNotInflight", "", 400, Meaning::Lost),
            ("ReceiptHandleIsInvalid", "", 404, Meaning::Lost),
            ("InvalidParameterValue", expired, 400, Meaning::Lost),
            ("InvalidParameterValue", beyond, 400, Meaning::Lost),
            ("InvalidParameterValue", "Value 11 for parameter MaxNumberOfMessages is invalid.", 400, Meaning::Other),
            ("RequestThrottled", "", 403, Meaning::Passing),
            ("OverLimit", "", 403, Meaning::Passing),
            ("KMS.ThrottlingException", "", 400, Meaning::Passing),
            ("InternalError", "", 500, Meaning::Passing),
            ("", "", 503, Meaning::Passing),
            ("AccessDeniedException", "", 400, Meaning::Denied),
            ("InvalidClientTokenId", "", 403, Meaning::Denied),
        ] {
            assert_eq!(meaning(code, message, status), expected, "{code} {message}");
        }
    }
}
