//! From a request to a checked job and the message that goes into the queue for it.

use axum::extract::Request;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::body::{self, Kind};
use super::draft::{Draft, Takes};
use super::form::{self, Form};
use super::inputs::{self, Input};
use super::problem::Problem;
use super::{Http, Settings, idempotency};
use crate::host::job_service::Model;
use crate::job::metadata::Metadata;
use crate::job::outcome::JobError;
use crate::job::request::{duplicates, weight, without_mark};
use crate::job::trace::{TRACEPARENT, Trace};
use crate::job::{Job, JobId};
use crate::shown;

/// Each has a path of its own.
const TASKS: [(&str, &str); 3] = [("generate", "a job of task generate"), ("tryon", "a try-on"), ("edit", "an edit")];

/// A job that someone asks for.
pub(super) struct Submission {
    pub(super) job: Job,
    /// The job's wire form, as it goes into a queue.
    pub(super) message: Vec<u8>,
    /// Images that came along; the message has the addresses at which they will lie.
    pub(super) inputs: Vec<Input>,
    pub(super) key: Option<idempotency::Key>,
    /// For as long as its images are in memory.
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// What the caller calls the wire form's fields, where it is not the same.
    names: Vec<(&'static str, String)>,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it, by the name that the caller gave the field.
pub(super) async fn read(http: &Http, request: Request, takes: Takes) -> Result<Submission, Problem> {
    let kinds: &[Kind] = if takes == Takes::Generate { &[Kind::Json] } else { &[Kind::Json, Kind::Form] };
    let settings = &http.settings;
    let admitted = admit(http, request, kinds, |kind| {
        let is_job = kind == Kind::Json && takes == Takes::Generate;
        if is_job { settings.max_job_bytes } else { settings.max_upload_bytes }
    });
    let Admitted { request, kind, limit_bytes, mut origin } = admitted.await?;
    let order = if kind == Kind::Form {
        let multipart = body::multipart(request, limit_bytes).await?;
        let form = body::in_time(settings, form::read(multipart, settings, takes)).await?;
        complete(http, form.into_draft(takes)?).await?
    } else {
        let bytes = body::read(request, limit_bytes, settings).await?;
        let read = bytes.clone();
        // A body has its room until it is read, also when its caller has gone.
        let room = origin.room.take();
        let (draft, room) = aside(move || (with_images(&read, takes), room)).await?;
        origin.room = room;
        if let Some(draft) = draft? {
            complete(http, draft).await?
        } else {
            check_bytes(&bytes, settings)?;
            job(http, bytes.to_vec(), Vec::new()).map_err(Problem::from)?
        }
    };
    checked(http, order, origin)
}

/// A request whose body is still to be read.
pub(super) struct Admitted {
    pub(super) request: Request,
    pub(super) kind: Kind,
    /// Of the body, at most.
    pub(super) limit_bytes: usize,
    pub(super) origin: Origin,
}

/// What a submission has from the head of its request.
pub(super) struct Origin {
    pub(super) key: Option<idempotency::Key>,
    room: Option<OwnedSemaphorePermit>,
    trace: Option<Trace>,
}

/// Looks at the head of a request: whether anything like it may come in now.
///
/// # Errors
/// When every model has failed, the head is wrong, or there is no room for the body.
pub(super) async fn admit(
    http: &Http,
    request: Request,
    kinds: &[Kind],
    limit_bytes: impl Fn(Kind) -> usize,
) -> Result<Admitted, Problem> {
    let failure = http.job_service.snapshot.borrow().failure().map(not_ready);
    if let Some(problem) = failure {
        // Nothing needs to be read that no model can take.
        body::drain(request).await;
        return Err(problem);
    }
    let key = idempotency::Key::of(request.headers())?;
    let trace = request.headers().get(TRACEPARENT).and_then(|value| Trace::from_traceparent(value.to_str().ok()?));
    let room = Kind::of(request.headers(), kinds).and_then(|kind| {
        let room = http.uploads.take(request.headers(), limit_bytes(kind), http.settings.max_job_bytes)?;
        Ok((kind, room))
    });
    match room {
        Ok((kind, room)) => Ok(Admitted { request, kind, limit_bytes: limit_bytes(kind), origin: Origin { key, room, trace } }),
        Err(problem) => {
            body::drain(request).await;
            Err(problem)
        }
    }
}

/// A draft of this host's own making, as [`read`] would have it.
///
/// # Errors
/// What is wrong with it, by the name that the caller gave the field.
pub(super) async fn from_draft(http: &Http, draft: Draft, origin: Origin) -> Result<Submission, Problem> {
    checked(http, complete(http, draft).await?, origin)
}

fn checked(http: &Http, order: Submission, origin: Origin) -> Result<Submission, Problem> {
    check_bytes(&order.message, &http.settings)?;
    (http.check)(&order.job).map_err(|error| at_the_door(error, &order.names))?;
    if let Model::Failed(why) = http.job_service.of(&order.job).model {
        return Err(not_ready(&why));
    }
    let Origin { key, room, trace } = origin;
    Ok(Submission { key, room, job: Job { trace, ..order.job }, ..order })
}

/// What is said of a model that never got ready.
fn not_ready(why: &str) -> Problem {
    let message = format!("the model could not be made ready; it is tried again ({why})");
    Problem::unavailable("model_not_ready", &message)
}

fn check_bytes(message: &[u8], settings: &Settings) -> Result<(), Problem> {
    if message.len() <= settings.max_job_bytes {
        return Ok(());
    }
    Err(Problem::too_large(&format!("a job must have at most {} bytes without its images", settings.max_job_bytes)))
}

/// Reads a body away from the threads that answer probes.
async fn aside<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|_| Problem::unavailable("internal", "the body could not be read; try again"))
}

/// The draft of a body that asks for a try-on or an edit; what is no JSON object is left to the job's own reading.
fn with_images(bytes: &[u8], takes: Takes) -> Result<Option<Draft>, Problem> {
    let bytes = without_mark(bytes);
    weight::check(bytes).map_err(|problem| Problem::too_large(&format!("the body is too much to parse: {problem}")))?;
    let (_, hollow) = Metadata::taken_out(bytes);
    let Ok(Value::Object(mut message)) = serde_json::from_slice(&hollow) else { return Ok(None) };
    duplicates::check(&hollow).map_err(Problem::from)?;
    // Null is as good as nothing, here as in the job's own reading.
    if message.get("task").is_some_and(Value::is_null) {
        message.shift_remove("task");
    }
    if matches!(takes, Takes::TryOn | Takes::Any) && form::is_form(&message) {
        return Form::from_json(message, takes)?.into_draft(takes).map(Some);
    }
    if let Some(own) = takes.task() {
        let task = message.entry("task").or_insert(json!(own));
        let other = TASKS.into_iter().find(|(name, _)| *task == *name && *name != own);
        if let Some((other, called)) = other {
            let problem = format!("must be {own:?} here; POST {called} to /{other}");
            return Err(Problem::invalid("task", problem));
        }
    }
    let has_images = message.get("task").is_some_and(|task| task == "tryon" || task == "edit");
    let callback = serde_json::from_slice(bytes).map(|Raw { callback }| callback).unwrap_or_default();
    Ok(has_images.then_some(Draft { message, callback, images: Vec::new(), names: Vec::new() }))
}

/// The part of a body that is handed on as it was written.
#[derive(Deserialize)]
struct Raw {
    callback: Option<Box<RawValue>>,
}

/// The wire form's text.
fn written(message: &mut Map<String, Value>, callback: Option<&RawValue>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(flatten)]
        message: &'a Map<String, Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        callback: Option<&'a RawValue>,
    }
    if callback.is_some() {
        message.shift_remove("callback");
    }
    let written = serde_json::to_vec(&Written { message, callback });
    written.unwrap_or_else(|_| Value::Object(message.clone()).to_string().into_bytes())
}

/// Gives every image that came along the address at which it will lie, and reads the job.
async fn complete(http: &Http, draft: Draft) -> Result<Submission, Problem> {
    // First, whatever else is wrong: images that came along lie under it.
    let id = match draft.message.get("job_id") {
        Some(Value::String(id)) => id,
        None | Some(Value::Null) => return Err(Problem::invalid("job_id", "is required")),
        Some(other) => return Err(Problem::invalid("job_id", format!("must be a text, got {}", shown::json(other)))),
    };
    let id = JobId::new(id).map_err(|problem| Problem::invalid("job_id", problem))?;
    let has_texts = inputs::has_data_urls(&draft.message);
    let draft = if has_texts { inputs::aside(|| with_decoded(draft)).await? } else { draft };
    let Draft { mut message, callback, images, names } = draft;
    let mut inputs = Vec::with_capacity(images.len());
    for (place, file) in images {
        let field = name(place.to_string(), &names);
        let input = inputs::check(place, field, file, &http.settings).await?;
        place.set(&mut message, http.store.input_address(&id, &input.name));
        inputs.push(input);
    }
    let written = written(&mut message, callback.as_deref());
    match job(http, written, inputs) {
        Ok(order) => Ok(Submission { names, ..order }),
        Err(error) => Err(renamed(error, &names).into()),
    }
}

/// With the images as well that are written out in its texts.
fn with_decoded(mut draft: Draft) -> Result<Draft, Problem> {
    let decoded = inputs::data_urls(&draft.message, |place| name(place.to_string(), &draft.names))?;
    draft.images.extend(decoded);
    Ok(draft)
}

fn job(http: &Http, message: Vec<u8>, inputs: Vec<Input>) -> Result<Submission, JobError> {
    let job = Job::from_json(&message, http.job_service.catalogue.as_ref()).map_err(|refusal| refusal.error)?;
    Ok(Submission { job, message, inputs, key: None, room: None, names: Vec::new() })
}

/// What is wrong with an input can be seen here without looking at it: the request itself is wrong.
fn at_the_door(error: JobError, names: &[(&'static str, String)]) -> Problem {
    match error {
        JobError::Input { field, problem, .. } => Problem::invalid(&name(field, names), problem),
        other => renamed(other, names).into(),
    }
}

fn renamed(error: JobError, names: &[(&'static str, String)]) -> JobError {
    match error {
        JobError::Invalid { field, problem } => JobError::Invalid { field: name(field, names), problem },
        other => other,
    }
}

fn name(field: String, names: &[(&'static str, String)]) -> String {
    names.iter().find(|(wire, _)| *wire == field).map_or(field, |(_, given)| given.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_on_is_handed_on_with_its_callback_as_it_was_written() {
        let callback = r#"{"metadata": {"id": 18446744073709551616, "price": 1.10}}"#;
        let body = format!(
            r#"{{"job_id": "a", "callback": {callback}, "person": "s3://b/p", "garments": ["s3://b/g"], "task": null}}"#
        );
        let draft = with_images(body.as_bytes(), Takes::TryOn).unwrap().unwrap();
        let Draft { mut message, callback: raw, .. } = draft;
        let text = String::from_utf8(written(&mut message, raw.as_deref())).unwrap();
        assert!(text.contains(callback), "{text}");
        assert!(Job::from_json(text.as_bytes(), &crate::job::request::Defaults::default()).is_ok(), "{text}");
    }
}
