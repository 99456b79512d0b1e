//! A model hub on loopback with the addresses of huggingface.co: a listing, files by way of a redirect, ranges, and faults.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use atelier::models::hub;
use atelier::setting::Secret;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::stream::{self, StreamExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

pub(crate) const REPOSITORY: &str = "ada/images";
pub(crate) const COMMIT: &str = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14";
pub(crate) const TOKEN: &str = "hf_test_token";

/// What happens to one download.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The connection breaks after so many bytes.
    CutAfter(usize),
    /// Nothing more comes after so many bytes.
    StallAfter(usize),
    Status(u16),
    /// One byte is another one.
    Corrupt,
    /// The whole file comes, whatever part was asked for.
    NoRange,
}

/// One a request; none where it had none.
type Tokens = Vec<Option<String>>;

/// A download that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
}

pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    state: Arc<Inside>,
}

#[derive(Default)]
struct Inside {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<VecDeque<(String, Fault)>>,
    asked: Mutex<Vec<Asked>>,
    listed: Mutex<usize>,
    /// `authorization` of the listing and the redirects, and of the host that the redirects lead to.
    tokens: Mutex<(Tokens, Tokens)>,
    /// Answers every listing: status, `x-error-code`.
    refusal: Mutex<Option<(u16, &'static str)>>,
    store: Mutex<Option<SocketAddr>>,
}

impl Hub {
    pub(crate) async fn start(files: &[(&str, &[u8])]) -> Self {
        let state = Arc::<Inside>::default();
        *state.files.lock().unwrap() = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        let store = Router::new().route("/blobs/{*path}", get(blob)).with_state(Arc::clone(&state));
        *state.store.lock().unwrap() = Some(serve(store).await);
        let router = Router::new()
            .route("/api/models/{owner}/{model}/revision/{revision}", get(listing))
            .route("/{owner}/{model}/resolve/{revision}/{*path}", get(resolve))
            .with_state(Arc::clone(&state));
        Self { address: serve(router).await, state }
    }

    pub(crate) fn settings(&self) -> hub::Settings {
        hub::Settings { endpoint: format!("http://{}", self.address), token: Some(Secret::new(TOKEN)), ..Default::default() }
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.state.files.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
    }

    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        self.state.files.lock().unwrap()[path].clone()
    }

    /// The next downloads of `path` fail so, one after the other.
    pub(crate) fn fail(&self, path: &str, faults: &[Fault]) {
        self.state.faults.lock().unwrap().extend(faults.iter().map(|fault| (path.to_owned(), *fault)));
    }

    pub(crate) fn refuse(&self, status: u16, code: &'static str) {
        *self.state.refusal.lock().unwrap() = Some((status, code));
    }

    /// Downloads and the number of listings since the last call.
    pub(crate) fn take_asked(&self) -> (Vec<Asked>, usize) {
        (std::mem::take(&mut self.state.asked.lock().unwrap()), std::mem::take(&mut self.state.listed.lock().unwrap()))
    }

    /// `authorization` as the hub saw it, and as the host saw it that keeps the files.
    pub(crate) fn tokens(&self) -> (Tokens, Tokens) {
        self.state.tokens.lock().unwrap().clone()
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn token(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

async fn listing(State(hub): State<Arc<Inside>>, request: Request) -> Response {
    assert_eq!(request.uri().query(), Some("blobs=true"));
    *hub.listed.lock().unwrap() += 1;
    hub.tokens.lock().unwrap().0.push(token(request.headers()));
    if let Some((status, code)) = *hub.refusal.lock().unwrap() {
        return (StatusCode::from_u16(status).unwrap(), [("x-error-code", code)]).into_response();
    }
    let files = hub.files.lock().unwrap();
    let siblings = files.iter().map(|(path, bytes)| {
        let sha256 = base16ct::lower::encode_string(&Sha256::digest(bytes));
        let mut about = json!({ "rfilename": path, "size": bytes.len(), "blobId": format!("git-{}", &sha256[..8]) });
        if is_large(path) {
            about["lfs"] = json!({ "sha256": sha256, "size": bytes.len(), "pointerSize": 134 });
        }
        about
    });
    let siblings: Vec<_> = siblings.collect();
    Json(json!({ "id": REPOSITORY, "sha": COMMIT, "private": false, "siblings": siblings })).into_response()
}

/// Large files lie on another host, small ones here.
async fn resolve(
    State(hub): State<Arc<Inside>>,
    Path((owner, model, revision, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    assert_eq!((format!("{owner}/{model}").as_str(), revision.as_str()), (REPOSITORY, COMMIT));
    hub.tokens.lock().unwrap().0.push(token(&headers));
    if !is_large(&path) {
        return content(&hub, &path, &headers);
    }
    let store = hub.store.lock().unwrap().expect("started");
    (StatusCode::FOUND, [(header::LOCATION, format!("http://{store}/blobs/{path}?X-Amz-Signature=1"))]).into_response()
}

async fn blob(State(hub): State<Arc<Inside>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    hub.tokens.lock().unwrap().1.push(token(&headers));
    content(&hub, &path, &headers)
}

fn content(hub: &Inside, path: &str, headers: &HeaderMap) -> Response {
    let range = headers.get(header::RANGE).map(|range| range.to_str().expect("text").to_owned());
    hub.asked.lock().unwrap().push(Asked { path: path.to_owned(), range: range.clone() });
    let Some(mut bytes) = hub.files.lock().unwrap().get(path).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let fault = {
        let mut faults = hub.faults.lock().unwrap();
        let place = faults.iter().position(|(faulty, _)| faulty == path);
        place.and_then(|place| faults.remove(place)).map(|(_, fault)| fault)
    };
    if let Some(Fault::Corrupt) = fault {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    if let Some(Fault::Status(status)) = fault {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let all = bytes.len();
    let start = match &range {
        Some(range) if !matches!(fault, Some(Fault::NoRange)) => {
            range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("an open range")
        }
        _ => 0,
    };
    let rest = bytes.split_off(start);
    let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = Response::builder().status(status).header(header::CONTENT_LENGTH, rest.len());
    if start > 0 {
        response = response.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{all}", all - 1));
    }
    response.body(faulty(rest, fault)).expect("a response")
}

fn faulty(bytes: Vec<u8>, fault: Option<Fault>) -> Body {
    let first = |count: usize| stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(&bytes[..count]))]);
    match fault {
        Some(Fault::CutAfter(count)) => cut(first(count)),
        Some(Fault::StallAfter(count)) => Body::from_stream(first(count).chain(stream::pending())),
        _ => Body::from(bytes),
    }
}

/// What has come goes out before the connection breaks.
fn cut(first: impl stream::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    });
    Body::from_stream(first.chain(broken))
}
