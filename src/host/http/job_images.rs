//! `/jobs/{id}/images/{n}`: an image of a complete job, for callers who are to reach this host alone: its own page.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;

use super::Http;
use super::jobs;
use super::problem::Problem;
use crate::host::jobs::JobStatus;
use crate::job::JobId;
use crate::job::outcome::{Record, StoredImage};

pub(super) async fn show(
    State(http): State<Arc<Http>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Problem> {
    let Path((id, number)) = path.map_err(|error| Problem::invalid("job_id", error.body_text()))?;
    let id = JobId::new(&id).map_err(|problem| Problem::invalid("job_id", problem))?;
    let number: usize = number.parse().map_err(|_| Problem::invalid("n", "must be the number of an image, from 0"))?;
    let known = jobs::job_status(&http, &id).await?;
    let record = jobs::record(&http, &id, known.as_ref()).await?;
    let Record { images, .. } = record.ok_or_else(|| without_images(&id, known.as_ref()))?;
    let image = images.get(number).ok_or_else(|| {
        let message = format!("the job {id} has {} images, the first of which is 0", images.len());
        Problem::new(StatusCode::NOT_FOUND, "unknown_image", &message)
    })?;
    let mut response = file(&http, image).await?;
    let headers = response.headers_mut();
    // It is its caller's own, and another job may come to have the id once the bucket has forgotten this one.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// The file of an image as it comes out of the bucket.
///
/// # Errors
/// Storage.
pub(super) async fn file(http: &Http, image: &StoredImage) -> Result<Response, Problem> {
    let file = http.store.image(image).await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, image.bytes.into());
    if let Ok(value) = HeaderValue::from_str(&image.content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    let chunks = stream::try_unfold(file, |mut file| async move {
        Ok::<_, axum::BoxError>(file.try_next().await?.map(|chunk| (chunk, file)))
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// Why a job has no record.
fn without_images(id: &JobId, known: Option<&JobStatus>) -> Problem {
    match known {
        Some(known) if known.has_failed() => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_image", &format!("the job {id} ended without images"))
        }
        Some(known) if !known.state.has_ended() => Problem::in_progress("the job has no images yet"),
        _ => jobs::unknown(id),
    }
}
