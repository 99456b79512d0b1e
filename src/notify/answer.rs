//! What is shown of a receiver's answer that was no success: its beginning, without what may be a credential.

use std::time::Duration;

use reqwest::Response;

use crate::setting::Secret;
use crate::shown;

const MAX_BYTES: usize = 2_000;
const MAX_CHARS: usize = 200;
/// A body that never ends keeps nobody.
const LIMIT: Duration = Duration::from_millis(500);

/// The start of the answer's body in quotation marks, after a space; empty where it has none. `token`: what the receiver knows us by.
pub(super) async fn beginning(mut response: Response, token: Option<&Secret>) -> String {
    let mut start = Vec::new();
    let reading = async {
        while start.len() < MAX_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            start.extend_from_slice(&chunk[..chunk.len().min(MAX_BYTES - start.len())]);
        }
    };
    // What has come by then is shown.
    let _ = tokio::time::timeout(LIMIT, reading).await;
    shown_of(&start, token)
}

/// Of what a receiver repeats in its answer, neither our token nor the queries of URLs; no line breaks or other control characters.
fn shown_of(body: &[u8], token: Option<&Secret>) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    if let Some(token) = token {
        text = text.replace(token.reveal(), "...");
    }
    let text = shown::without_queries(&text.replace(char::is_control, " "));
    match text.trim() {
        "" => String::new(),
        text => format!(" {:?}", shown::clipped(text.to_owned(), MAX_CHARS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_shown_on_one_line_without_credentials() {
        let token = Secret::new("an internal token of 32 characters");
        let body = "Bearer an internal token of 32 characters\r\n\u{1b}[31mhttps://b/k?X-Amz-Signature=s3cr3t \u{0}end";
        assert_eq!(shown_of(body.as_bytes(), Some(&token)), " \"Bearer ...   [31mhttps://b/k?...  end\"");
        assert_eq!(shown_of(b" \n", None), "");
        let long = shown_of("ä".repeat(900).as_bytes(), None);
        assert_eq!(long.chars().count(), MAX_CHARS + 3, "{long}");
    }
}
