//! The Runtime API for one handler process: hands it one invocation at a time and takes its answer.
//!
//! - `GET /2018-06-01/runtime/invocation/next` is held open until there is an invocation; it is never answered 204.
//! - `POST …/invocation/{id}/response`: buffered up to 6 MiB, or streamed (`Lambda-Runtime-Function-Response-Mode: streaming`).
//! - `POST …/invocation/{id}/error` and `POST …/init/error`.
//!
//! See <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::answer::{Answer, FunctionError};
use super::listener;
use crate::clock::later;

/// What Lambda allows a buffered reply, in bytes.
const MAX_BUFFERED_BYTES: usize = 6_291_556;
/// What Lambda allows a streamed reply, in bytes.
const MAX_STREAMED_BYTES: usize = 200 << 20;

/// One event on its way through a handler.
pub struct Invocation {
    pub event: Value,
    /// How long the handler has.
    pub limit: Duration,
    /// JSON for the header `Lambda-Runtime-Client-Context`.
    pub client_context: Option<String>,
    /// `Root=1-…`, handed on where the event came with one.
    pub trace_id: Option<String>,
}

/// The server of one handler process; it ends when this is dropped.
pub struct RuntimeApi {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    function_arn: String,
    exchange: Mutex<Exchange>,
    offered: Notify,
    /// How far the handler's start is.
    started: watch::Sender<Started>,
}

/// How far a handler's start is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    NotYet,
    /// It asked for its first event.
    Ready,
    /// It said why it cannot start.
    Failed(FunctionError),
}

#[derive(Default)]
struct Exchange {
    offer: Option<(String, Invocation)>,
    taken: Option<Taken>,
    /// The invocation that was abandoned last: its late answer gets an error that says so.
    last_given_up: Option<String>,
    waiting: Option<oneshot::Sender<Answer>>,
}

struct Taken {
    request_id: String,
    invocation_id: String,
}

impl RuntimeApi {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(function_name: &str) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            function_arn: format!("arn:aws:lambda:local:000000000000:function:{function_name}"),
            exchange: Mutex::default(),
            offered: Notify::new(),
            started: watch::Sender::new(Started::NotYet),
        });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .layer(DefaultBodyLimit::disable())
            .with_state(shared.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener::prompt(listener), router).await {
                tracing::error!(%error, "a handler's Runtime API ended");
            }
        });
        Ok(Self { address, shared, server })
    }

    /// Resolves when the handler asked for its first event or said why it cannot start.
    pub async fn started(&self) -> Started {
        let mut started = self.shared.started.subscribe();
        let seen = started.wait_for(|started| *started != Started::NotYet).await;
        seen.map_or(Started::NotYet, |started| started.clone())
    }

    /// Offers one invocation; the answer comes out of the receiver, which is closed without one when the handler asked for
    /// another event instead of answering. One at a time: an offer while another runs replaces it.
    #[must_use]
    pub fn invoke(&self, invocation: Invocation) -> oneshot::Receiver<Answer> {
        let (sender, answer) = oneshot::channel();
        let mut exchange = self.shared.exchange();
        exchange.offer = Some((Uuid::now_v7().to_string(), invocation));
        exchange.taken = None;
        exchange.waiting = Some(sender);
        drop(exchange);
        self.shared.offered.notify_one();
        answer
    }

    /// Whether the handler has fetched the invocation that was offered last.
    #[must_use]
    pub fn was_taken(&self) -> bool {
        self.shared.exchange().offer.is_none()
    }

    /// Waits no longer for the running invocation: its late answer is refused with 410.
    pub fn abandon(&self) {
        let mut exchange = self.shared.exchange();
        exchange.last_given_up = exchange.taken.take().map(|taken| taken.request_id);
        exchange.offer = None;
        exchange.waiting = None;
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    /// A panic under the lock leaves nothing half done: every change is a few assignments.
    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an answer belongs to the running invocation.
    fn check(&self, id: &str, headers: &HeaderMap) -> Result<(), Response> {
        let exchange = self.exchange();
        if exchange.last_given_up.as_deref() == Some(id) {
            return Err(problem(StatusCode::GONE, "InvocationGone", "the invocation's time was over: it was abandoned"));
        }
        let Some(taken) = exchange.taken.as_ref().filter(|taken| taken.request_id == id) else {
            return Err(problem(StatusCode::BAD_REQUEST, "InvalidRequestID", "no invocation with this request id is running"));
        };
        match headers.get("lambda-runtime-invocation-id") {
            Some(echo) if echo.as_bytes() != taken.invocation_id.as_bytes() => {
                Err(problem(StatusCode::BAD_REQUEST, "InvalidInvocationID", "Lambda-Runtime-Invocation-Id is of another one"))
            }
            _ => Ok(()),
        }
    }

    /// Ends the running invocation, unless it was abandoned in the meantime.
    fn answer(&self, id: &str, answer: Answer) {
        let mut exchange = self.exchange();
        if exchange.taken.as_ref().is_some_and(|taken| taken.request_id == id) {
            exchange.taken = None;
            if let Some(waiting) = exchange.waiting.take() {
                // A host that drains may have stopped waiting.
                let _ = waiting.send(answer);
            }
        }
    }

    fn take(&self) -> Option<Response> {
        let mut exchange = self.exchange();
        let (request_id, invocation) = exchange.offer.take()?;
        let invocation_id = Uuid::now_v7().to_string();
        let response = invocation.response(&request_id, &invocation_id, &self.function_arn);
        exchange.taken = Some(Taken { request_id, invocation_id });
        Some(response)
    }
}

impl Invocation {
    fn response(&self, request_id: &str, invocation_id: &str, function_arn: &str) -> Response {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let deadline_ms = later(now, self.limit).as_millis().to_string();
        let trace_id = self.trace_id.clone().unwrap_or_else(|| new_trace_id(now));
        let mut response = self.event.to_string().into_response();
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in [
            ("lambda-runtime-aws-request-id", request_id),
            ("lambda-runtime-invocation-id", invocation_id),
            ("lambda-runtime-deadline-ms", &deadline_ms),
            ("lambda-runtime-invoked-function-arn", function_arn),
            ("lambda-runtime-trace-id", &trace_id),
            ("lambda-runtime-client-context", self.client_context.as_deref().unwrap_or_default()),
        ] {
            if let Some(value) = Some(value).filter(|value| !value.is_empty()).and_then(|value| value.parse().ok()) {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// `Root=1-{seconds in hex}-{96 random bits}`, the form of AWS X-Ray.
fn new_trace_id(now: Duration) -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("Root=1-{:08x}-{};Sampled=0", now.as_secs(), &random[..24])
}

async fn next(State(shared): State<Arc<Shared>>) -> Response {
    shared.started.send_replace(Started::Ready);
    // A handler that asks for more owes no answer any more: the task that waits for it is released.
    let unanswered = {
        let mut exchange = shared.exchange();
        exchange.taken.take().and_then(|_| exchange.waiting.take())
    };
    drop(unanswered);
    loop {
        let offered = shared.offered.notified();
        if let Some(response) = shared.take() {
            return response;
        }
        offered.await;
    }
}

async fn response(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    if let Err(refused) = shared.check(&id, &headers) {
        return refused;
    }
    let streamed = headers.get("lambda-runtime-function-response-mode").is_some_and(|mode| mode.as_bytes() == b"streaming");
    let most = if streamed { MAX_STREAMED_BYTES } else { MAX_BUFFERED_BYTES };
    let collected = match Limited::new(body, most).collect().await {
        Ok(collected) => collected,
        Err(error) => {
            let too_large = error.is::<LengthLimitError>();
            let message = if too_large {
                format!("the reply is larger than the {most} bytes that are allowed")
            } else {
                format!("the reply broke off ({error})")
            };
            let error_type = if too_large { "Function.ResponseSizeTooLarge" } else { "Runtime.TruncatedResponse" };
            shared.answer(&id, Answer::Error(FunctionError::new(error_type, &message)));
            let status = if too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            return problem(status, error_type, &message);
        }
    };
    let trailer = collected.trailers().and_then(|trailers| trailers.get("lambda-runtime-function-error-type")).cloned();
    let answer = match trailer {
        Some(error_type) => {
            let error_type = String::from_utf8_lossy(error_type.as_bytes()).into_owned();
            Answer::Error(FunctionError::new(&error_type, "the function failed in the middle of its streamed reply"))
        }
        None => Answer::Reply { body: collected.to_bytes(), http_stream: is_http_stream(&headers) },
    };
    shared.answer(&id, answer);
    accepted()
}

fn is_http_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").map(HeaderValue::as_bytes);
    kind == Some(b"application/vnd.awslambda.http-integration-response")
}

async fn error(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    if let Err(refused) = shared.check(&id, &headers) {
        return refused;
    }
    let reported = reported_error(&headers, body).await;
    shared.answer(&id, Answer::Error(reported));
    accepted()
}

async fn init_error(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    let reported = reported_error(&headers, body).await;
    shared.started.send_replace(Started::Failed(reported));
    accepted()
}

async fn reported_error(headers: &HeaderMap, body: Body) -> FunctionError {
    let body = Limited::new(body, MAX_BUFFERED_BYTES).collect().await;
    let body: Value = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or_default();
    let header = headers.get("lambda-runtime-function-error-type").and_then(|value| value.to_str().ok());
    // lambda_runtime puts the constant "unhandled" into the header and the real type into the body.
    let error_type = body["errorType"].as_str().or(header).unwrap_or("Unknown");
    FunctionError::new(error_type, body["errorMessage"].as_str().unwrap_or_default())
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({ "status": "OK" }))).into_response()
}

fn problem(status: StatusCode, error_type: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "errorType": error_type, "errorMessage": message }))).into_response()
}
