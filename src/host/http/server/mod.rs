//! The HTTP server: bounded in its connections, and in the time for which a caller may leave one unused.
//!
//! - A caller has `head_timeout_ms` for the head of a request, from its first byte on, and `idle_timeout_ms` until that byte.
//! - A caller who takes nothing of an answer for `write_timeout_ms` is cut off.
//! - Where every connection is taken, a new one replaces the one that has been without a request for longest: half requests
//!   never keep a probe out.

mod connections;
mod stream;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use self::connections::{Connections, Slot};
use self::stream::ImpatientStream;
use super::Settings;

/// Bytes of a request's head, at most; hyper answers 431 to more.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// After an error that is no connection's own, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(200);
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
    connection: close\r\ncontent-length: 75\r\n\r\n\
    {\"error\":{\"code\":\"busy\",\"message\":\"every connection is in use; try again\"}}";

/// Serves until `shutdown`, then ends the requests that are under way.
///
/// # Errors
/// When the listener cannot be used.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let connections = Arc::new(Connections::new(settings.max_connections));
    let under_way = TaskTracker::new();
    let limits = Limits {
        head: Duration::from_millis(settings.head_timeout_ms),
        idle: Duration::from_millis(settings.idle_timeout_ms),
        write: Duration::from_millis(settings.write_timeout_ms),
    };
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The caller was gone before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match connections.enter() {
            Some(slot) => {
                under_way.spawn(converse(stream, router.clone(), Arc::new(slot), limits));
            }
            None => {
                under_way.spawn(turn_away(stream, limits.write));
            }
        }
    }
    drop(listener);
    connections.close();
    under_way.close();
    under_way.wait().await;
    Ok(())
}

/// How long a caller may leave a connection unused.
#[derive(Clone, Copy)]
struct Limits {
    head: Duration,
    idle: Duration,
    write: Duration,
}

/// One connection, from its first request to its last.
async fn converse(stream: TcpStream, router: Router, slot: Arc<Slot>, limits: Limits) {
    // Without Nagle's algorithm: the body of an answer that follows its head would wait for the caller's delayed
    // acknowledgement, 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps its delay");
    }
    let stream = ImpatientStream::new(stream, Arc::clone(&slot), limits.write);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let answering = slot.begin();
        let answer = router.call(request);
        async move { Ok::<_, Infallible>(answering.until_sent(answer.await?)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut closing = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = slot.replaced() => return,
            () = slot.head_is_overdue(limits.head) => return,
            () = slot.closing(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Every connection is answering a request: says so, and waits no longer than anyone else.
async fn turn_away(mut stream: TcpStream, write_timeout: Duration) {
    // Best effort: the caller may be gone.
    let _ = tokio::time::timeout(write_timeout, stream.write_all(BUSY)).await;
}
