//! Errors in OpenAI's shape, which its clients turn into exceptions by status, and show by `message`.

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::super::problem::{Problem, Refused};
use crate::job::outcome::{CONFLICT, CONTENT_BLOCKED};

/// Says every refusal below `/v1` in OpenAI's shape, of paths and methods that do not exist as well; status and headers stay.
pub(in super::super) async fn in_openai_shape(request: Request, next: Next) -> Response {
    let is_theirs = request.uri().path().starts_with("/v1/");
    let response = next.run(request).await;
    if !is_theirs {
        return response;
    }
    let Some(Refused { body }) = response.extensions().get::<Refused>().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    // Theirs is a bad request: a client raises what its users already catch.
    let status = if is_blocked(&body) { StatusCode::BAD_REQUEST } else { parts.status };
    (status, parts.headers, Json(shape(status, &body))).into_response()
}

fn is_blocked(body: &Value) -> bool {
    body["error"]["code"] == CONTENT_BLOCKED
}

/// `body`: ours, `{"error": {"code", "message", "field"?}}`.
fn shape(status: StatusCode, body: &Value) -> Value {
    let error = &body["error"];
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    // Under the names that OpenAI's own moderation has.
    if is_blocked(body) {
        let kind = "image_generation_user_error";
        let code = "moderation_blocked";
        return json!({ "error": { "message": error["message"], "type": kind, "param": error["field"], "code": code } });
    }
    // The job's id was made from the key: the caller knows the key alone.
    if error["code"] == CONFLICT {
        let message = "this Idempotency-Key stands for another request; send that request again, or choose another key";
        return json!({ "error": { "message": message, "type": kind, "param": null, "code": CONFLICT } });
    }
    json!({ "error": { "message": error["message"], "type": kind, "param": error["field"], "code": error["code"] } })
}

/// What a stream ends with where the job fails under way.
pub(super) fn of(problem: Problem) -> Value {
    let said = problem.into_answer();
    let status = StatusCode::from_u16(said.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    shape(status, &said.body)
}
