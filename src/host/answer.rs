//! How an invocation ends, and what a handler answers to it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::cause::Cause;

/// What came back from one invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// `http_stream`: the body is a JSON prelude (`statusCode`, `headers`), eight zero bytes, and the response's own body.
    Reply {
        body: Bytes,
        http_stream: bool,
    },
    Error(FunctionError),
}

/// How an invocation ended.
#[derive(Debug)]
pub enum Ended {
    Answered(Answer),
    /// The handler died over it.
    Died(Cause),
    /// The handler never had it, or was stopped by us: no attempt of the job.
    Untried,
}

/// What a function says of its own failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error_type}: {message}")]
pub struct FunctionError {
    pub error_type: String,
    pub message: String,
}

impl FunctionError {
    #[must_use]
    pub fn new(error_type: &str, message: &str) -> Self {
        Self { error_type: error_type.to_owned(), message: message.to_owned() }
    }
}

/// The zero bytes between prelude and body of a streamed HTTP response.
const DELIMITER: [u8; 8] = [0; 8];

/// The reply as JSON; a streamed HTTP response becomes what a buffered one would have been. A body that is neither is null.
#[must_use]
pub fn reply_value(body: &Bytes, http_stream: bool) -> Value {
    if !http_stream {
        return serde_json::from_slice(body).unwrap_or_default();
    }
    let Some(end) = body.windows(DELIMITER.len()).position(|window| window == DELIMITER) else { return Value::Null };
    let Ok(mut response) = serde_json::from_slice::<Value>(&body[..end]) else { return Value::Null };
    let content = &body[end + DELIMITER.len()..];
    if let Ok(text) = std::str::from_utf8(content) {
        response["body"] = text.into();
    } else {
        response["body"] = STANDARD.encode(content).into();
        response["isBase64Encoded"] = json!(true);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_http_responses_become_buffered_ones() {
        let stream = Bytes::from_static(b"{\"statusCode\":201,\"headers\":{}}\0\0\0\0\0\0\0\0hello");
        assert_eq!(reply_value(&stream, true), json!({ "statusCode": 201, "headers": {}, "body": "hello" }));
        let binary = Bytes::from_static(b"{\"statusCode\":200}\0\0\0\0\0\0\0\0\xff\xfe");
        assert_eq!(reply_value(&binary, true), json!({ "statusCode": 200, "body": "//4=", "isBase64Encoded": true }));
    }

    #[test]
    fn what_is_no_json_is_null() {
        assert_eq!(reply_value(&Bytes::from_static(b"not JSON"), false), Value::Null);
        assert_eq!(reply_value(&Bytes::from_static(b"no delimiter"), true), Value::Null);
    }
}
