//! Sizes that a caller chooses: refused early, and never repeated in the answer.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Front, assert_problem, generate, read};

#[tokio::test]
async fn a_body_that_is_too_much_to_parse_is_refused_before_it_is_parsed() {
    let front = Front::open().await;
    for path in ["/tryon", "/infer"] {
        for piece in ["[],", "{},", "\"\",", "1,"] {
            let body = format!("{{\"job_id\":\"a\",\"person\":[{}0]}}", piece.repeat((20 << 20) / piece.len()));
            let request = front.request(Method::POST, path).header("content-type", "application/json").body(body);
            let (status, body) = read(request).await;
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{path} {piece}: {body}");
            assert_problem(&body, "too_large", None, "at most 1000000 bytes outside of its texts");
        }
    }
}

#[tokio::test]
async fn an_error_is_no_echo() {
    let front = Front::open().await;
    let long = "n".repeat(900_000);
    let mut body = generate("job-1");
    body[&long] = json!(1);
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.to_string().len() < 3_000, "{} bytes", answer.to_string().len());
    let form = format!("--b\r\ncontent-disposition: form-data; name=\"{long}\"\r\n\r\nx\r\n--b--\r\n");
    let request = front.request(Method::POST, "/tryon").header("content-type", "multipart/form-data; boundary=b");
    let (status, answer) = read(request.body(form)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.to_string().len() < 3_000, "{} bytes", answer.to_string().len());
    let mut body = generate("job-2");
    body["callback"] = json!({ "metadata": { "text": "x".repeat(70_000) } });
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&answer, "invalid_request", Some("callback.metadata"), "at most 65536 bytes as JSON");
}
