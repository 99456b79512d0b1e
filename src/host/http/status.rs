//! What this node says of itself. None of it waits, so that it is answered while jobs run and handlers crash.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::problem::Problem;
use super::{Http, ModelInfo};
use crate::host::Function;
use crate::host::job_service::{Model, StatusSnapshot};
use crate::job::request::Defaults;

const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// Of build.rs: a commit, `development`, or `unknown` for a release that was built without git.
const GIT_COMMIT: &str = env!("ATELIER_GIT_COMMIT");

pub(super) async fn health(State(http): State<Arc<Http>>) -> Json<Value> {
    let snapshot = http.job_service.snapshot.borrow();
    let model_loaded = snapshot.model().1 == &Model::Hot;
    let models = states(&http, &snapshot);
    Json(json!({ "status": "ok", "model_loaded": model_loaded, "node_id": http.node_id, "models": models }))
}

/// Whether a job sent now would be generated soon, else why not: `reason`, in words.
pub(super) async fn test(State(http): State<Arc<Http>>) -> (StatusCode, Json<Value>) {
    let snapshot = http.job_service.snapshot.borrow().clone();
    let store_trouble = http.job_service.store_trouble.borrow().clone();
    // A load balancer is to send nothing more here.
    let trouble = if snapshot.draining {
        Some("the host shuts down: it takes no new job".to_owned())
    } else {
        store_trouble.or_else(|| http.job_service.queue.trouble())
    };
    let (place, model) = snapshot.model();
    // Named: of one model alone it goes without saying whose handlers they are.
    let of_model = |reason: &str| match http.models.get(place).filter(|_| http.models.len() > 1) {
        Some(info) => format!("{}: {reason}", info.model_version),
        None => reason.to_owned(),
    };
    let (status, reason) = match (model, trouble) {
        (Model::Hot | Model::Unloaded { .. }, None) => ("hot", None),
        (Model::Hot | Model::Unloaded { .. }, trouble) => ("failed", trouble),
        (Model::Loading, trouble) => ("loading", trouble.or_else(|| Some(of_model("no handler is ready yet")))),
        (Model::Failed(why), _) => ("failed", Some(of_model(why))),
    };
    let mut body = json!({
        "status": status,
        "model_loaded": *model == Model::Hot,
        "node_id": http.node_id,
        "model_type": http.model.model_type,
        "models": states(&http, &snapshot),
    });
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    (code, Json(body))
}

pub(super) async fn version(State(http): State<Arc<Http>>) -> Json<Value> {
    Json(json!({
        "model_type": http.model.model_type,
        "model_version": http.model.model_version,
        "backend": http.model.backend,
        "git_commit": GIT_COMMIT,
        "node_id": http.node_id,
        "models": versions(&http),
    }))
}

/// What is served: each model with its tasks, what a job may ask of it, and how far its handlers are.
pub(super) async fn models(State(http): State<Arc<Http>>) -> Json<Value> {
    let snapshot = http.job_service.snapshot.borrow();
    let known = versions(&http).into_iter().zip(&snapshot.models).zip(http.job_service.catalogue.models());
    let models = known.enumerate().map(|(place, ((mut version, status), served))| {
        version["tasks"] = json!(served.tasks);
        if let Some(Function { capabilities, upscalers, segmenter, .. }) = http.functions.at(place) {
            version["modes"] = json!(capabilities.modes());
            version["loras"] = capabilities.takes_loras().into();
            version["controlnets"] = json!(capabilities.controlnets());
            version["ip_adapters"] = json!(capabilities.ip_adapters());
            version["upscalers"] = json!(upscalers.listed);
            version["mask_classes"] = json!(segmenter.classes);
            version["guidance"] = capabilities.has_guidance().into();
            version["side_multiple_px"] = capabilities.side_multiple_px().into();
        }
        if served.tasks.contains(&"generate") {
            version["defaults"] = defaults(&served.defaults);
        }
        version["status"] = label(&status.model).into();
        version["model_loaded"] = (status.model == Model::Hot).into();
        version
    });
    Json(json!({ "models": models.collect::<Vec<_>>() }))
}

/// What a generation gets that leaves a field out.
fn defaults(Defaults { steps, guidance_scale, scheduler, width, height, seed, .. }: &Defaults) -> Value {
    json!({
        "steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler, "width": width, "height": height, "seed": seed,
    })
}

/// How far each listed model is.
fn states(http: &Http, snapshot: &StatusSnapshot) -> Vec<Value> {
    let states = http.models.iter().zip(&snapshot.models).map(|(info, status)| {
        json!({ "name": info.model_version, "status": label(&status.model), "model_loaded": status.model == Model::Hot })
    });
    states.collect()
}

fn label(model: &Model) -> &'static str {
    match model {
        Model::Hot => "hot",
        Model::Unloaded { loading: false } => "unloaded",
        Model::Loading | Model::Unloaded { loading: true } => "loading",
        Model::Failed(_) => "failed",
    }
}

fn versions(http: &Http) -> Vec<Value> {
    let versions = http.models.iter().map(|ModelInfo { model_type, model_version, backend }| {
        json!({ "name": model_version, "model_type": model_type, "backend": backend })
    });
    versions.collect()
}

/// Busy: every handler has a job.
pub(super) async fn gpu(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let queue_length = http.job_service.waiting().await?;
    let snapshot = http.job_service.snapshot.borrow();
    Ok(Json(json!({
        "node_id": http.node_id,
        "busy": snapshot.free() == 0 && !snapshot.running.is_empty(),
        "current_job_id": snapshot.running.first(),
        "queue_length": queue_length,
    })))
}

pub(super) async fn metrics(State(http): State<Arc<Http>>) -> impl IntoResponse {
    (http.refresh)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], http.metrics.render())
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}
