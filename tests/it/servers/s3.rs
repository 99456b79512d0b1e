//! An S3 server in the process (s3s-fs): the real protocol with signatures checked, with faults in front of it on demand.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use atelier::setting::Secret;
use atelier::store;
use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleError;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub(crate) const ACCESS_KEY_ID: &str = "atelier-test";
pub(crate) const SECRET_ACCESS_KEY: &str = "atelier-test-secret";

pub(crate) struct S3 {
    pub(crate) address: SocketAddr,
    /// Buckets are its directories, objects their files.
    pub(crate) root: TempDir,
    front: Arc<Front>,
}

/// What a server does from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Quirk {
    /// Every write on condition succeeds, as on old servers.
    IgnoresConditions,
    /// The policy lacks what requests for objects with this method need.
    Denies(&'static str),
}

#[derive(Default)]
struct Front {
    faults: Mutex<VecDeque<u16>>,
    /// Path, and the bytes of the next answer's body after which the connection breaks.
    cut: Mutex<Option<(String, usize)>>,
    quirk: Mutex<Option<Quirk>>,
    /// `METHOD /bucket/key` of every request.
    requests: Mutex<Vec<String>>,
}

impl S3 {
    pub(crate) async fn start(buckets: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for bucket in buckets {
            std::fs::create_dir(root.path().join(bucket)).expect("a bucket");
        }
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).expect("an S3 directory"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = HandleError::new(builder.build(), |error: s3s::HttpError| async move {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}"))
        });
        let front = Arc::<Front>::default();
        let router = Router::new().fallback_service(service).layer(from_fn_with_state(Arc::clone(&front), stand_in_front));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, root, front }
    }

    /// The next requests are answered with these statuses instead of being served.
    pub(crate) fn fail_next(&self, statuses: &[u16]) {
        self.front.faults.lock().expect("no panic under the lock").extend(statuses);
    }

    /// The connection breaks in the next answer of `path` (`/bucket/key`), after so many bytes of its body.
    pub(crate) fn cut_next(&self, path: &str, after: usize) {
        *self.front.cut.lock().expect("no panic under the lock") = Some((path.to_owned(), after));
    }

    pub(crate) fn behave(&self, quirk: Quirk) {
        *self.front.quirk.lock().expect("no panic under the lock") = Some(quirk);
    }

    /// `METHOD /bucket/key` of the requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.front.requests.lock().expect("no panic under the lock"))
    }

    pub(crate) fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        let path = self.root.path().join(bucket).join(key);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, bytes).expect("an object");
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        std::fs::read(self.root.path().join(bucket).join(key)).expect("an object")
    }

    pub(crate) fn settings(&self, bucket: &str, cache: &Path) -> store::Settings {
        settings(self.address, bucket, cache)
    }
}

/// Settings for an S3 server on loopback, with short times.
pub(crate) fn settings(address: SocketAddr, bucket: &str, cache: &Path) -> store::Settings {
    store::Settings {
        bucket: bucket.into(),
        endpoint_url: Some(format!("http://{address}")),
        force_path_style: true,
        access_key_id: Some(ACCESS_KEY_ID.into()),
        secret_access_key: Some(Secret::new(SECRET_ACCESS_KEY)),
        cache: store::cache::Settings { directory: cache.to_owned(), ..Default::default() },
        ..Default::default()
    }
}

async fn stand_in_front(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    front.requests.lock().expect("no panic under the lock").push(format!("{} {}", request.method(), request.uri().path()));
    let fault = front.faults.lock().expect("no panic under the lock").pop_front();
    if let Some(status) = fault.and_then(|status| StatusCode::from_u16(status).ok()) {
        return (status, slow_down()).into_response();
    }
    let cut = front.cut.lock().expect("no panic under the lock").take_if(|(path, _)| path == request.uri().path());
    let quirk = *front.quirk.lock().expect("no panic under the lock");
    let is_object = request.uri().path().trim_matches('/').contains('/');
    match quirk {
        Some(Quirk::Denies(method)) if is_object && request.method().as_str() == method => {
            return (StatusCode::FORBIDDEN, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
                .into_response();
        }
        Some(Quirk::IgnoresConditions) if request.headers().contains_key(IF_NONE_MATCH) => {
            return [(ETAG, "\"written again\"")].into_response();
        }
        _ => {}
    }
    let response = next.run(request).await;
    match cut {
        Some((_, after)) => broken_off(response, after).await,
        None => response,
    }
}

async fn broken_off(response: Response, after: usize) -> Response {
    let (head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body").slice(..after);
    let broken = futures::stream::once(async {
        // What has come goes out before the connection breaks.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    });
    Response::from_parts(head, Body::from_stream(futures::stream::iter([Ok(bytes)]).chain(broken)))
}

fn slow_down() -> String {
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>".into()
}
