//! The HTTP side of the host on a real socket, against the embedded S3 server; behind its job service a queue that only holds.

mod doors;
mod edit;
mod idempotency;
mod infer;
mod job_events;
mod jobs;
mod openai;
mod openai_edits;
mod openapi;
mod openapi_clients;
mod page;
mod promises;
mod sizes;
mod status;
mod tenants;
mod tryon;
mod typed_clients;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use atelier::demo::{local, s3};
use atelier::events::auth::Auth;
use atelier::host::functions::Functions;
use atelier::host::http::uploads::Uploads;
use atelier::host::http::{Http, ModelInfo, serve};
use atelier::host::job_service::{Direct, JobService, Model, ModelStatus, StatusSnapshot};
use atelier::host::jobs::Jobs;
use atelier::job::Job;
use atelier::job::outcome::{Provenance, Record, StoredImage};
use atelier::job::request::catalogue::{Catalogue, Served};
use atelier::job::task::ModelName;
use atelier::metrics::Metrics;
use atelier::metrics::gpu::Gpus;
use atelier::outbound::Outbound;
use atelier::setting::Secret;
use atelier::store::Store;
use atelier::{outbound, store};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::bucket::Bucket;
use crate::host::shelf::Shelf;
use crate::requests::contract;
use crate::servers::DEADLINE;
use crate::stage::TOKEN;

/// HTTP, served, with every handle to what lies behind it.
struct Front {
    address: SocketAddr,
    bucket: Bucket,
    store: Store,
    shelf: Arc<Shelf>,
    jobs: Arc<Jobs>,
    snapshot: watch::Sender<StatusSnapshot>,
    store_trouble: watch::Sender<Option<String>>,
    directs: mpsc::Receiver<Direct>,
    cancels: mpsc::UnboundedReceiver<String>,
    client: reqwest::Client,
    close: Option<oneshot::Sender<()>>,
    _cache: TempDir,
}

/// A node that is ready and has nothing to do.
fn idle() -> StatusSnapshot {
    at(Model::Hot, 1)
}

/// A node whose one model is that far, with so many free handlers.
fn at(model: Model, free: usize) -> StatusSnapshot {
    StatusSnapshot { models: vec![ModelStatus { model, free }], running: Vec::new(), in_flight: 0, draining: false }
}

/// One model that does everything.
pub(super) fn catalogue() -> Catalogue {
    let name = ModelName::new("tiny-sd").unwrap();
    Catalogue::new(Served { name, tasks: &["generate", "tryon", "edit"], defaults: contract() }, Vec::new())
}

fn model_info() -> ModelInfo {
    ModelInfo { model_type: "stable-diffusion-1".to_owned(), model_version: "tiny-sd".to_owned(), backend: "candle".to_owned() }
}

pub(crate) fn store_settings(bucket: &Bucket, cache: &Path) -> store::Settings {
    store::Settings {
        bucket: local::BUCKET.to_owned(),
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(format!("http://{}", bucket.address)),
        force_path_style: true,
        access_key_id: Some(s3::ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(Secret::new(s3::SECRET_ACCESS_KEY)),
        max_attempts: 1,
        input_buckets: vec!["elsewhere".to_owned()],
        cache: store::cache::Settings { directory: cache.to_owned(), ..store::cache::Settings::default() },
        ..store::Settings::default()
    }
}

impl Front {
    async fn open() -> Self {
        Self::open_with(|_| ()).await
    }

    /// `change`: what is different from the default.
    async fn open_with(change: impl FnOnce(&mut Http)) -> Self {
        let bucket = Bucket::start().await;
        let cache = tempfile::tempdir().unwrap();
        let settings = store_settings(&bucket, cache.path());
        let outbound = Outbound::new(&outbound::Settings::default()).unwrap();
        let store = Store::connect(&settings, outbound).await.unwrap();
        let shelf = Arc::<Shelf>::default();
        let jobs = Arc::<Jobs>::default();
        let (snapshot, snapshots) = watch::channel(idle());
        let (trouble, store_trouble) = watch::channel(None);
        let (direct, directs) = mpsc::channel(4);
        let (cancel, cancels) = mpsc::unbounded_channel();
        let job_service = JobService {
            jobs: Arc::clone(&jobs),
            catalogue: Arc::new(catalogue()),
            queue: shelf.clone(),
            max_waiting: 2,
            max_waiting_per_tenant: None,
            snapshot: snapshots,
            store_trouble,
            direct,
            cancels: cancel,
        };
        let mut http = Http {
            job_service,
            store: store.clone(),
            auth: Auth::Token(Secret::new(TOKEN)),
            node_id: "node-1".to_owned(),
            model: model_info(),
            models: vec![model_info()],
            settings: atelier::host::http::Settings::default(),
            uploads: Uploads::new(&atelier::host::http::Settings::default()),
            metrics: Metrics::new(Gpus::none()).unwrap(),
            refresh: Arc::new(|| ()),
            check: Arc::new(|_| Ok(())),
            functions: Functions::new(Vec::new(), watch::channel(Vec::new()).1),
            page: true,
            passes_through: false,
        };
        change(&mut http);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (close, closed) = oneshot::channel::<()>();
        tokio::spawn(serve(listener, http, async move {
            let _ = closed.await;
        }));
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self {
            address,
            bucket,
            store,
            shelf,
            jobs,
            snapshot,
            store_trouble: trouble,
            directs,
            cancels,
            client,
            close: Some(close),
            _cache: cache,
        }
    }

    /// A request with the token.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).header("x-internal-auth", TOKEN)
    }

    fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.request(Method::POST, path).json(body)).await
    }

    /// What the workflow leaves in the bucket when it has generated `job`.
    async fn generate(&self, job: &Job) -> Record {
        let image = self.store.put_image(job, "try", 0, 8, 8, 42, png()).await.unwrap();
        let record = record(job, image);
        self.store.put_record(&job.output.prefix, &record).await.unwrap();
        record
    }

    /// What the handler answers when it has generated.
    async fn reply_of(&self, direct: &Direct) -> Value {
        let record = self.generate(&direct.job).await;
        let image = &record.images[0];
        let body = json!({
            "type": "inference.complete", "job_id": record.job_id, "timings_ms": record.timings_ms, "status": "complete",
            "images": [{
                "url": "https://cdn.example/0.png", "bucket": image.bucket, "key": image.key, "bytes": image.bytes,
                "content_type": image.content_type, "width": image.width_px, "height": image.height_px, "seed": 42,
            }],
        });
        json!({ "statusCode": 200, "headers": { "content-type": "application/json" }, "body": body.to_string() })
    }
}

pub(crate) fn record(job: &Job, image: StoredImage) -> Record {
    Record {
        job_id: job.id.to_string(),
        fingerprint: job.fingerprint.clone(),
        model: "tiny-sd".to_owned(),
        licence: None,
        images: vec![image],
        provenance: Provenance::default(),
        timings_ms: [("infer".to_owned(), 1_200)].into(),
        finished_at_s: 1_800_000_000,
    }
}

async fn read(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, json_of(response).await)
}

/// The body; every answer must be JSON and carry a request id.
async fn json_of(response: Response) -> Value {
    let headers = response.headers().clone();
    assert!(headers.contains_key("x-request-id"), "{headers:?}");
    let text = response.text().await.unwrap();
    let kind = headers.get("content-type").map(|kind| kind.to_str().unwrap()).unwrap_or_default();
    assert_eq!(kind, "application/json", "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What an error must be: a code, a message that says this, and the field where there is one.
#[track_caller]
fn assert_problem(body: &Value, code: &str, field: Option<&str>, says: &str) {
    assert_eq!(body["error"]["code"], code, "{body}");
    assert_eq!(body["error"]["field"].as_str(), field, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains(says), "{message:?} does not say {says:?}");
}

fn generate(id: &str) -> Value {
    json!({ "job_id": id, "prompt": "a lighthouse at dusk" })
}

fn job_of(body: &Value) -> Job {
    Job::from_json(body.to_string().as_bytes(), &contract()).unwrap()
}

/// A small image.
fn png() -> Vec<u8> {
    image(image::ImageFormat::Png, 16)
}

fn image(format: image::ImageFormat, side_px: u32) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(side_px, side_px).write_to(&mut file, format).unwrap();
    file.into_inner()
}
