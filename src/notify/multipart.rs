//! `multipart/form-data` (RFC 7578) whose bytes are the same each time, so that a repetition is one.

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// One field; names and file names are ours and need no quoting.
pub(super) struct Part {
    head: String,
    content: Vec<u8>,
}

impl Part {
    pub(super) fn text(name: &str, text: &str) -> Self {
        Self { head: format!("Content-Disposition: form-data; name=\"{name}\"\r\n"), content: text.into() }
    }

    pub(super) fn file(name: &str, file_name: &str, content_type: &str, content: Vec<u8>) -> Self {
        let head = format!(
            "Content-Disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\nContent-Type: {content_type}\r\n"
        );
        Self { head, content }
    }
}

/// A whole body.
pub(super) struct Form {
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

impl Form {
    pub(super) fn new(parts: &[Part]) -> Self {
        let boundary = boundary(parts);
        let mut body = Vec::with_capacity(parts.iter().map(|part| part.content.len() + 256).sum());
        for Part { head, content } in parts {
            body.extend_from_slice(format!("--{boundary}\r\n{head}\r\n").as_bytes());
            body.extend_from_slice(content);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        Self { content_type: format!("multipart/form-data; boundary={boundary}"), body: body.into() }
    }
}

/// No one can write a text that holds its own hash, so that no caller's text ends a part early.
fn boundary(parts: &[Part]) -> String {
    let mut hash = Sha256::new();
    for Part { head, content } in parts {
        hash.update(head);
        hash.update(content);
    }
    format!("atelier-{}", &base16ct::lower::encode_string(&hash.finalize())[..48])
}
