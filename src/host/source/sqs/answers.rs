//! Answers whose status says that all is well, and that are not SQS's word for it: of a proxy, a gateway, a server that is broken.

use aws_sdk_sqs::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_sdk_sqs::operation::send_message::SendMessageOutput;
use md5::{Digest as _, Md5};

/// Takes no answer for SQS's that is no JSON object. The SDK itself ignores the body where it expects nothing.
#[derive(Debug)]
pub(super) struct JsonAnswers;

impl Intercept for JsonAnswers {
    fn name(&self) -> &'static str {
        "JsonAnswers"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let body = response.body().bytes().unwrap_or_default();
        if !response.status().is_success() || is_of_sqs(body) {
            return Ok(());
        }
        let kind = response.headers().get("content-type").unwrap_or("no content type");
        let status = response.status().as_u16();
        Err(format!("the answer {status} ({kind}, {} bytes) is not SQS's: is there a proxy in between?", body.len()).into())
    }
}

/// Where an operation answers nothing, the body is empty or an empty object.
fn is_of_sqs(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    body.is_empty() || body.starts_with(b"{")
}

/// Whether SQS says that it has this message: only then may anybody be told so, and only then may another copy be deleted.
///
/// # Errors
/// What its answer lacks.
pub(super) fn confirmed(body: &str, sent: &SendMessageOutput) -> Result<(), String> {
    if sent.message_id().is_none_or(str::is_empty) {
        return Err("the answer names no message (MessageId): SQS has not confirmed that it has it".to_owned());
    }
    let expected = base16ct::lower::encode_string(&Md5::digest(body));
    match sent.md5_of_message_body() {
        Some(md5) if md5.eq_ignore_ascii_case(&expected) => Ok(()),
        Some(md5) => Err(format!("the answer confirms another message (MD5OfMessageBody {md5:?}, sent was {expected})")),
        None => Err("the answer does not say what was received (MD5OfMessageBody)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_and_the_right_hash_confirm_a_message() {
        let answer = || SendMessageOutput::builder().message_id("m-1");
        assert_eq!(confirmed("hello", &answer().md5_of_message_body("5d41402abc4b2a76b9719d911017c592").build()), Ok(()));
        for (answer, problem) in [
            (SendMessageOutput::builder(), "names no message"),
            (answer().message_id(""), "names no message"),
            (answer(), "does not say what was received"),
            (answer().md5_of_message_body("0"), "confirms another message"),
        ] {
            let error = confirmed("hello", &answer.build()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_page_is_no_answer_of_sqs() {
        for body in ["", " ", "{}", "{\"MessageId\": \"m\"}"] {
            assert!(is_of_sqs(body.as_bytes()), "{body:?}");
        }
        for body in ["<html>log in</html>", "ok", "[]"] {
            assert!(!is_of_sqs(body.as_bytes()), "{body:?}");
        }
    }
}
