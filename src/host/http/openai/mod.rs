//! OpenAI's images API, so that its clients work unchanged: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`.
//!
//! - A request becomes a job of task `generate` that runs on this host, as for `/infer`: same checks, record and webhooks. Of a model that is shown images
//!   and starts from none, an edit is a job of task `edit`.
//! - Fields that this function has no use for are ignored, since clients send many; one that it knows and cannot do is refused.
//! - Errors have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.

mod answer;
mod edits;
mod errors;
mod parameters;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

pub(super) use self::errors::in_openai_shape;
use self::parameters::Endpoint;
use super::body::{self, Kind};
use super::draft::{Draft, Place};
use super::problem::Problem;
use super::submission::{self, Admitted, Origin};
use super::{Http, ModelInfo, auth, infer};
use crate::job::request::{duplicates, weight};
use crate::shown;

pub(super) fn routes(http: &Arc<Http>) -> Router<Arc<Http>> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edit))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route_layer(from_fn_with_state(Arc::clone(http), auth::require))
}

async fn generations(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let limit_bytes = http.settings.max_job_bytes;
    let Admitted { request, origin, .. } = submission::admit(&http, request, &[Kind::Json], |_| limit_bytes).await?;
    let bytes = body::read(request, limit_bytes, &http.settings).await?;
    weight::check(&bytes).map_err(|problem| Problem::too_large(&format!("the body is too much to parse: {problem}")))?;
    let given = match serde_json::from_slice(&bytes) {
        Ok(Value::Object(given)) => given,
        Ok(other) => return Err(Problem::invalid("body", format!("must be a JSON object, got {}", shown::json(&other)))),
        Err(error) => return Err(Problem::invalid("body", format!("must be a JSON object ({error})"))),
    };
    duplicates::check(&bytes)?;
    run(http, Endpoint::Generations, given, Vec::new(), origin).await
}

async fn edit(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let limit_bytes = http.settings.max_upload_bytes;
    let Admitted { request, origin, .. } = submission::admit(&http, request, &[Kind::Form], |_| limit_bytes).await?;
    let multipart = body::multipart(request, limit_bytes).await?;
    let form = body::in_time(&http.settings, edits::read(multipart, &http.settings)).await?;
    let image_use = parameters::image_use(form.given(), &http);
    let edits::Edit { mut given, images, size_px } = form.checked(image_use, &http.settings).await?;
    if let Some(size_px) = size_px {
        parameters::size_of_image(&mut given, size_px, &http);
    }
    run(http, Endpoint::Edits, given, images, origin).await
}

/// Runs the job on this host. A caller who closes the connection cancels it.
async fn run(
    http: Arc<Http>,
    endpoint: Endpoint,
    given: Map<String, Value>,
    images: Vec<(Place, bytes::Bytes)>,
    origin: Origin,
) -> Result<Response, Problem> {
    let (draft, wanted) = parameters::read(endpoint, given, origin.key.as_ref(), &http)?;
    let mut draft = Draft { images, ..draft };
    let shown = draft.images.iter().filter(|(place, _)| matches!(place, Place::Image(_))).count();
    if shown > 0 {
        parameters::as_edit(&mut draft, shown, &http);
    }
    let submission = submission::from_draft(&http, draft, origin).await?;
    let running = infer::begin(&http, submission).await?;
    let id = running.id.clone();
    let answered =
        if wanted.stream { Ok(answer::stream(http, running, wanted)) } else { answer::json(&http, running, &wanted).await };
    Ok(infer::with_job_id(answered, &id))
}

async fn models(State(http): State<Arc<Http>>) -> Json<Value> {
    let models: Vec<Value> = http.models.iter().map(described).collect();
    Json(json!({ "object": "list", "data": models }))
}

async fn model(State(http): State<Arc<Http>>, path: Result<Path<String>, PathRejection>) -> Result<Json<Value>, Problem> {
    let Path(name) = path.map_err(|error| Problem::invalid("model", error.body_text()))?;
    let found = http.models.iter().find(|model| model.model_version == name);
    found.map(|model| Json(described(model))).ok_or_else(|| unknown_model(&name, &http))
}

/// When a model was made is not known here.
fn described(model: &ModelInfo) -> Value {
    json!({ "id": model.model_version, "object": "model", "created": 0, "owned_by": "atelier" })
}

fn unknown_model(name: &str, http: &Http) -> Problem {
    let served: Vec<String> = http.models.iter().map(|model| format!("{:?}", model.model_version)).collect();
    let gets = match served.len() {
        1 => "which a request without a model gets",
        _ => "of which a request without a model gets the first that does its task",
    };
    let message = format!(
        "the model {} does not exist here; this host serves {} (GET /v1/models), {gets}",
        shown::text(name),
        served.join(", ")
    );
    Problem::new(StatusCode::NOT_FOUND, "model_not_found", &message).field("model")
}
