//! The webhook receiver of the demo: what a backend would do with a notification, signature check included.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A notification that came with a valid signature.
#[derive(Debug)]
pub struct Notification {
    pub method: Method,
    pub path: String,
    pub webhook_id: String,
    pub body: Value,
}

struct Shared {
    webhook: Webhook,
    notifications: mpsc::UnboundedSender<Notification>,
}

/// Listens on `address` until the process ends; every notification that verifies against `secret` comes out of the channel.
///
/// # Errors
/// When the secret is none or the address cannot be listened on.
pub async fn serve(secret: &str, address: SocketAddr) -> io::Result<(SocketAddr, mpsc::UnboundedReceiver<Notification>)> {
    let webhook = Webhook::new(secret).map_err(io::Error::other)?;
    let (notifications, received) = mpsc::unbounded_channel();
    let router = Router::new().fallback(receive).with_state(Arc::new(Shared { webhook, notifications }));
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((address, received))
}

async fn receive(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    if shared.webhook.verify(&body, &headers).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    let Ok(body) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST };
    let webhook_id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let _ = shared.notifications.send(Notification { method, path: uri.path().to_owned(), webhook_id, body });
    StatusCode::NO_CONTENT
}
