//! A Runtime API server for tests: hands out the events it is given and collects what the handler posts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// Of an answer that is not streamed.
const MAX_RESPONSE_BYTES: usize = 6_291_556;

/// What a handler posted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Posted {
    Response(Value),
    Error { error_type: String, body: Value },
    InitError { error_type: String, body: Value },
}

pub(crate) struct RuntimeApi {
    pub(crate) address: SocketAddr,
    events: mpsc::UnboundedSender<Invocation>,
    posted: mpsc::UnboundedReceiver<Posted>,
}

struct Invocation {
    event: Value,
    deadline_ms: u64,
    client_context: Option<&'static str>,
}

struct Shared {
    events: Mutex<mpsc::UnboundedReceiver<Invocation>>,
    posted: mpsc::UnboundedSender<Posted>,
}

impl RuntimeApi {
    pub(crate) async fn start() -> Self {
        let (events, waiting) = mpsc::unbounded_channel();
        let (sender, posted) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { events: Mutex::new(waiting), posted: sender });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{what}", post(outcome))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .with_state(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, events, posted }
    }

    /// Queues an event whose deadline is `limit` from now.
    pub(crate) fn invoke(&self, event: Value, limit: Duration) {
        let deadline = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + limit;
        self.invoke_with_deadline(event, deadline.as_millis() as u64);
    }

    pub(crate) fn invoke_with_deadline(&self, event: Value, deadline_ms: u64) {
        self.events.send(Invocation { event, deadline_ms, client_context: None }).unwrap();
    }

    /// As `atelier host` does it, which delivers notifications itself.
    pub(crate) fn invoke_for_host(&self, event: Value) {
        let client_context = Some(r#"{"custom":{"atelier":"host"}}"#);
        self.events.send(Invocation { event, deadline_ms: 0, client_context }).unwrap();
    }

    /// The next thing a handler posts, within a minute.
    pub(crate) async fn posted(&mut self) -> Posted {
        timeout(Duration::from_mins(1), self.posted.recv()).await.expect("the handler posted nothing for a minute").unwrap()
    }

    pub(crate) fn nothing_posted(&mut self) -> bool {
        self.posted.try_recv().is_err()
    }
}

/// Held open until there is an event, as the real one does; a killed handler's request takes none with it.
async fn next(State(shared): State<Arc<Shared>>) -> Response {
    let Invocation { event, deadline_ms, client_context } = shared.events.lock().await.recv().await.unwrap();
    let mut headers = HeaderMap::new();
    if let Some(context) = client_context {
        headers.insert("lambda-runtime-client-context", HeaderValue::from_static(context));
    }
    headers.insert("lambda-runtime-aws-request-id", HeaderValue::from_static("8476a536-e9f4-11e8-9739-2dfe598c3fcd"));
    headers.insert("lambda-runtime-deadline-ms", HeaderValue::from(deadline_ms));
    headers.insert(
        "lambda-runtime-invoked-function-arn",
        HeaderValue::from_static("arn:aws:lambda:us-east-1:123456789012:function:atelier"),
    );
    headers.insert("lambda-runtime-trace-id", HeaderValue::from_static("Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700"));
    (headers, event.to_string()).into_response()
}

async fn outcome(
    State(shared): State<Arc<Shared>>,
    Path((_, what)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    // As the real one: a handler that posts more has answered nothing.
    if body.len() > MAX_RESPONSE_BYTES {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let posted = match what.as_str() {
        "response" => Posted::Response(body),
        _ => Posted::Error { error_type: error_type(&headers, &body), body },
    };
    let _ = shared.posted.send(posted);
    StatusCode::ACCEPTED
}

async fn init_error(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let _ = shared.posted.send(Posted::InitError { error_type: error_type(&headers, &body), body });
    StatusCode::ACCEPTED
}

fn error_type(headers: &HeaderMap, body: &Value) -> String {
    let header = headers.get("lambda-runtime-function-error-type").and_then(|value| value.to_str().ok());
    // lambda_runtime puts the constant "unhandled" into the header and the real type into the body.
    body["errorType"].as_str().or(header).unwrap_or_default().to_owned()
}
