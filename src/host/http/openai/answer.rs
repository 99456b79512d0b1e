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
use crate::host::previews::Looking;
use crate::protocol::report::Preview;

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

/// Answers at once: with an event for each preview, and one per image when the job is done. A caller who goes away drops the stream, and so
/// cancels the job.
pub(super) fn stream(http: Arc<Http>, running: Running, wanted: Wanted) -> Response {
    let previews = if wanted.partial_images > 0 { http.subscribe(&running.id) } else { None };
    let partials = previews.map(|looking| Partials { looking, passed: 0, sent: 0, wanted: wanted.clone() });
    let last = async move {
        match finished(&http, running, &wanted).await {
            Ok(images) => images.iter().map(|image| completed(&wanted, image)).collect(),
            Err(problem) => vec![event("error", &errors::of(problem))],
        }
    };
    let events = stream::unfold(Some((Box::pin(last), partials)), |state| async {
        let (mut last, mut partials) = state?;
        let last_events = tokio::select! {
            biased;
            last_events = &mut last => last_events,
            partial = next_partial(&mut partials) => return Some((vec![partial], Some((last, partials)))),
        };
        Some((last_events, None))
    });
    let events = events.flat_map(stream::iter).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Previews of a job, spread evenly over its steps.
struct Partials {
    looking: Looking,
    /// How many of the steps at which one is due have passed.
    passed: u32,
    sent: u32,
    wanted: Wanted,
}

/// Never resolves where none are wanted, or all have been sent.
async fn next_partial(partials: &mut Option<Partials>) -> Event {
    match partials {
        Some(partials) => partials.next().await,
        None => std::future::pending().await,
    }
}

impl Partials {
    async fn next(&mut self) -> Event {
        loop {
            let preview = self.looking.next().await;
            let due = due(self.wanted.partial_images, preview.step, preview.steps);
            if due > self.passed {
                self.passed = due;
                self.sent += 1;
                return self.event(&preview);
            }
        }
    }

    /// The one that was counted last.
    fn event(&self, preview: &Preview) -> Event {
        let mut body = described(&self.wanted, &format!("{}x{}", preview.width_px, preview.height_px));
        let name = self.wanted.endpoint.partial_image();
        body["type"] = name.into();
        body["created_at"] = unix_s().into();
        // Whatever the finished image will be.
        body["output_format"] = "jpeg".into();
        body["partial_image_index"] = (self.sent - 1).into();
        body["b64_json"] = preview.image.as_str().into();
        event(name, &body)
    }
}

/// How many of so many previews are due once `step` of `steps` is done, if they lie evenly between the first and the last step.
fn due(count: u32, step: u32, steps: u32) -> u32 {
    let passed = u64::from(step) * (u64::from(count) + 1) / u64::from(steps.max(1));
    u32::try_from(passed).unwrap_or(count).min(count)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_images_lie_evenly_between_the_first_step_and_the_last() {
        let steps_of = |count: u32, steps: u32| -> Vec<u32> {
            (1..=steps).filter(|step| due(count, *step, steps) > due(count, step - 1, steps)).collect()
        };
        assert_eq!(steps_of(3, 20), [5, 10, 15]);
        assert_eq!(steps_of(2, 4), [2, 3]);
        assert_eq!(steps_of(3, 4), [1, 2, 3]);
        assert_eq!(steps_of(1, 2), [1]);
        assert!(steps_of(0, 20).is_empty());
        assert_eq!(due(3, 1, 1), 3, "none is due more often than it was asked for");
    }
}
