//! Finished images in OpenAI's shape: one JSON body, or server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::super::infer::{self, DoneImage, Running};
use super::super::problem::Problem;
use super::super::{Http, KEEP_ALIVE};
use super::errors;
use super::parameters::{ImageForm, Wanted};

/// Waits for the job, and answers with all of its images.
///
/// # Errors
/// What went wrong with the job.
pub(super) async fn json(http: &Http, running: Running, wanted: &Wanted) -> Result<Response, Problem> {
    let images = finished(http, running, wanted).await?;
    let mut body = described(wanted, &images[0].size);
    body["created"] = unix_s().into();
    body["data"] = images.into_iter().map(|image| json!({ wanted.image.name(): image.content })).collect();
    Ok(Json(body).into_response())
}

/// Answers at once, with one event per image when the job is done. A caller who goes away drops the stream, and so cancels the job.
pub(super) fn stream(http: Arc<Http>, running: Running, wanted: Wanted) -> Response {
    let events = stream::once(async move {
        match finished(&http, running, &wanted).await {
            Ok(images) => images.iter().map(|image| completed(&wanted, image)).collect(),
            Err(problem) => vec![event("error", &errors::of(problem))],
        }
    });
    let events = events.flat_map(stream::iter).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// An image that is stored.
struct Finished {
    /// The file in base64, or its URL.
    content: String,
    /// Such as `512x512`.
    size: String,
}

/// One image at least.
async fn finished(http: &Http, running: Running, wanted: &Wanted) -> Result<Vec<Finished>, Problem> {
    let reply = running.reply().await?;
    let done = infer::done(&reply)?;
    let mut finished = Vec::with_capacity(done.images.len());
    for image in &done.images {
        let content = match wanted.image {
            ImageForm::Url => image.url.clone(),
            ImageForm::B64Json => encoded(http, image).await?,
        };
        finished.push(Finished { content, size: image.size() });
    }
    Ok(finished)
}

/// The stored file in base64.
async fn encoded(http: &Http, image: &DoneImage) -> Result<String, Problem> {
    let file = http.store.image(&image.stored()).await?.collect().await;
    let file = file.map_err(|error| {
        tracing::warn!(%error, "a stored image could not be read");
        Problem::unavailable("storage_failed", "the image is stored and could not be read; try again")
    })?;
    Ok(STANDARD.encode(file.into_bytes()))
}

fn described(wanted: &Wanted, size: &str) -> Value {
    json!({ "background": "opaque", "output_format": wanted.output_format, "quality": wanted.quality.name(), "size": size })
}

fn completed(wanted: &Wanted, image: &Finished) -> Event {
    let mut body = described(wanted, &image.size);
    let name = wanted.endpoint.completed();
    body["type"] = name.into();
    body["created_at"] = unix_s().into();
    body[wanted.image.name()] = image.content.as_str().into();
    event(name, &body)
}

fn event(name: &str, body: &Value) -> Event {
    Event::default().event(name).data(body.to_string())
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
