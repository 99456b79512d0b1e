//! Reads request bodies, bounded in bytes and time.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt as _;

use super::Settings;
use super::problem::Problem;
use crate::shown;

/// What a body claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Form,
}

impl Kind {
    /// # Errors
    /// A 415 for everything else; `allowed` says what the endpoint takes.
    pub(super) fn of(headers: &HeaderMap, allowed: &[Self]) -> Result<Self, Problem> {
        let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("identity");
        if !encoding.eq_ignore_ascii_case("identity") {
            let message = format!("content-encoding must not be set, got {encoding:?}: send the body as it is, not compressed");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", &message));
        }
        let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = match given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Some(Self::Json),
            "multipart/form-data" => Some(Self::Form),
            _ => None,
        };
        kind.filter(|kind| allowed.contains(kind)).ok_or_else(|| {
            let names: Vec<_> = allowed.iter().map(|kind| kind.name()).collect();
            let message = format!("content-type must be {}, got {}", names.join(" or "), shown::text(given));
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", &message)
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Form => "multipart/form-data",
        }
    }
}

/// The whole body.
///
/// # Errors
/// A 413 when it is longer than `limit_bytes`, a 408 when it does not arrive in time.
pub(super) async fn read(request: Request, limit_bytes: usize, settings: &Settings) -> Result<Bytes, Problem> {
    let request = limit(request, limit_bytes).await?;
    in_time(settings, async {
        Bytes::from_request(request, &()).await.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(limit_bytes),
            _ => Problem::invalid("body", "broke off before its end"),
        })
    })
    .await
}

/// The body as a form whose fields are still to be read.
///
/// # Errors
/// A 413 when it is longer than `limit_bytes`, a 400 when it has no boundary.
pub(super) async fn multipart(request: Request, limit_bytes: usize) -> Result<Multipart, Problem> {
    let request = limit(request, limit_bytes).await?;
    Multipart::from_request(request, &())
        .await
        .map_err(|_| Problem::invalid("content-type", "must name the boundary: multipart/form-data; boundary=..."))
}

/// Bounds the reading of a body in time.
pub(super) async fn in_time<T>(settings: &Settings, reading: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let limit = Duration::from_millis(settings.body_timeout_ms);
    tokio::time::timeout(limit, reading).await.unwrap_or_else(|_| {
        let message = format!("the body was not complete after {} ms", limit.as_millis());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", &message))
    })
}

pub(super) fn too_large(limit_bytes: usize) -> Problem {
    Problem::too_large(&format!("the body must have at most {limit_bytes} bytes"))
}

async fn limit(mut request: Request, limit_bytes: usize) -> Result<Request, Problem> {
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit_bytes as u64) {
        drain(request).await;
        return Err(too_large(limit_bytes));
    }
    DefaultBodyLimit::max(limit_bytes).apply(&mut request);
    Ok(request)
}

/// Reads away what a caller is still sending who is to be refused: one who is cut off while sending often never reads the
/// answer. Callers who send too much or too slowly are cut off all the same.
pub(super) async fn drain(request: Request) {
    const MAX_BYTES: usize = 100 << 20;
    const MAX_TIME: Duration = Duration::from_secs(5);
    // It waits for our word before it sends anything.
    if request.headers().contains_key(EXPECT) {
        return;
    }
    let reading = async {
        let mut read = 0;
        let mut chunks = request.into_body().into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > MAX_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(MAX_TIME, reading).await;
}
