//! HTTP: jobs come in, images and standing go out; paths and bodies are those of the services this replaces.
//!
//! - Every answer carries `x-request-id`; every error is JSON, `{"error": {"code", "message", "field"?}}`.
//! - `docs/openapi.json` describes all of it and is served at `/openapi.json`.
//! - Nothing here waits for the GPU but `POST /infer`.

mod auth;
mod body;
mod draft;
mod edit_form;
mod form;
mod idempotency;
mod infer;
mod inputs;
mod job_events;
mod job_images;
mod jobs;
mod openai;
mod page;
mod problem;
mod server;
mod status;
mod submission;
mod submit;
mod trace;
pub mod uploads;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};

use self::uploads::Uploads;
use super::functions::Functions;
use super::job_service::JobService;
use super::previews::Looking;
use crate::events::auth::Auth;
use crate::events::http::Response;
use crate::job::outcome::JobError;
use crate::job::{Job, JobId};
use crate::metrics::Metrics;
use crate::store::Store;

/// A stream of events carries a comment so often while nothing happens, so that no proxy takes the connection for idle.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Settings of section `host.http`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bytes of one job as it goes into the queue, at most; SQS takes 1 MiB.
    pub max_job_bytes: usize,
    /// Bytes of a request that brings images along, at most.
    pub max_upload_bytes: usize,
    /// Bytes of all request bodies above `max_job_bytes` that are in memory at the same moment, at most; never less than one may have.
    pub max_uploads_bytes: usize,
    /// Bytes of one such image, at most.
    pub max_image_bytes: usize,
    /// Pixels of one such image when it is unpacked, at most.
    pub max_image_pixels: u64,
    /// Milliseconds in which a request's body must have arrived.
    pub body_timeout_ms: u64,
    /// Milliseconds in which a request's head must have arrived, from its first byte on.
    pub head_timeout_ms: u64,
    /// Milliseconds after which a connection is closed over which no request comes; more than a load balancer's own (60 s).
    pub idle_timeout_ms: u64,
    /// Milliseconds after which a caller is cut off who takes nothing of an answer.
    pub write_timeout_ms: u64,
    /// Whether callers may look at jobs while they run.
    pub previews: bool,
    /// Connections at once, at most, and at most half of the open files that the system allows (`ulimit -n`).
    pub max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_job_bytes: 1_000_000,
            max_upload_bytes: 64 << 20,
            max_uploads_bytes: 256 << 20,
            max_image_bytes: 20 << 20,
            max_image_pixels: 40_000_000,
            body_timeout_ms: 60_000,
            head_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            write_timeout_ms: 30_000,
            previews: true,
            max_connections: 1_000,
        }
    }
}

/// Brings the metrics up to date before they are read; it must be quick, for they are asked for while everything else goes on.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Refuses a job that this host's function can never do, as far as the host knows.
pub type Check = Arc<dyn Fn(&Job) -> Result<(), JobError> + Send + Sync>;

/// What HTTP works with.
pub struct Http {
    pub job_service: JobService,
    pub store: Store,
    pub auth: Auth,
    pub node_id: String,
    /// The one that the contract's fields speak of.
    pub model: ModelInfo,
    /// All that are listed, in the order of the catalogue.
    pub models: Vec<ModelInfo>,
    pub settings: Settings,
    /// Room for the bodies of `settings.max_uploads_bytes`.
    pub uploads: Uploads,
    pub metrics: Metrics,
    pub refresh: Refresh,
    pub check: Check,
    pub functions: Functions,
    /// There is a page at `/`.
    pub page: bool,
    /// The function is another one than this binary's own: what it answers is its callers' to read.
    pub passes_through: bool,
}

impl Http {
    /// Looks at a job from now on, where callers may.
    fn subscribe(&self, id: &JobId) -> Option<Looking> {
        self.settings.previews.then(|| self.job_service.jobs.previews.subscribe(id.as_str()))
    }
}

/// What `/version` and `/test` say of the model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Such as `stable-diffusion-1`.
    pub model_type: String,
    pub model_version: String,
    /// Such as `candle`.
    pub backend: String,
}

/// Reads a multipart form as `/tryon` does, and drops it; for what only asks whether it would be taken: the fuzz targets.
///
/// # Errors
/// The answer that its sender would get.
pub async fn check_form(content_type: &str, body: Bytes, settings: &Settings) -> Result<(), Response> {
    form::check(content_type, body, settings).await.map_err(problem::Problem::into_answer)
}

/// Serves until `shutdown`, then ends the requests that are under way.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(listener: TcpListener, http: Http, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let settings = http.settings.clone();
    server::serve(listener, router(Arc::new(http)), &settings, shutdown).await
}

fn router(http: Arc<Http>) -> Router {
    let guarded = Router::new()
        .route("/generate", post(submit::generate))
        .route("/tryon", post(submit::tryon))
        .route("/edit", post(submit::edit))
        .route("/infer", post(infer::infer))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/jobs/{id}/events", get(job_events::follow))
        .route("/jobs/{id}/images/{n}", get(job_images::show))
        .route("/gpu/status", get(status::gpu))
        .route_layer(from_fn_with_state(Arc::clone(&http), auth::require));
    let page = if http.page { page::routes() } else { Router::new() };
    Router::new()
        .route("/health", get(status::health))
        .route("/test", get(status::test))
        .route("/version", get(status::version))
        .route("/models", get(status::models))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(status::openapi))
        .merge(guarded)
        .merge(page)
        .merge(openai::routes(&http))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn(openai::in_openai_shape))
        .layer(from_fn_with_state(Arc::clone(&http), trace::propagate))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(trace::RequestIds))
        .with_state(http)
}
