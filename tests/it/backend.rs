//! A backend that receives notices: real HTTP on loopback, answering as it is told to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) webhook_id: String,
    pub(crate) body: Value,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// What terminal notices are answered; none: never.
    pub(crate) answer: watch::Sender<Option<StatusCode>>,
    notices: mpsc::UnboundedReceiver<Notice>,
    accepted: Arc<Mutex<Vec<Notice>>>,
}

struct Shared {
    accepted: Arc<Mutex<Vec<Notice>>>,
    answer: watch::Receiver<Option<StatusCode>>,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Backend {
    pub(crate) async fn start() -> Self {
        let (answer, answers) = watch::channel(Some(StatusCode::OK));
        let (sender, notices) = mpsc::unbounded_channel();
        let accepted = Arc::<Mutex<Vec<Notice>>>::default();
        let shared = Shared { accepted: accepted.clone(), answer: answers, notices: sender };
        let router = Router::new().fallback(receive).with_state(Arc::new(shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, answer, notices, accepted }
    }

    /// The terminal notices that were answered with a 2xx so far.
    pub(crate) fn accepted(&self) -> Vec<Notice> {
        self.accepted.lock().unwrap().clone()
    }

    /// The next terminal notice, within a minute; progress on the way is dropped.
    pub(crate) async fn terminal(&mut self) -> Notice {
        loop {
            let next = timeout(Duration::from_mins(1), self.notices.recv());
            let notice = next.await.expect("no terminal notice for a minute").unwrap();
            if notice.method != Method::PATCH {
                return notice;
            }
        }
    }

    /// The next notice of any kind, within a minute.
    pub(crate) async fn next(&mut self) -> Notice {
        timeout(Duration::from_mins(1), self.notices.recv()).await.expect("no notice for a minute").unwrap()
    }

    /// Everything that has arrived and was not looked at.
    pub(crate) fn arrived(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.notices.try_recv().ok()).collect()
    }
}

async fn receive(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let webhook_id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let terminal = method != Method::PATCH;
    let notice = Notice { method, path: uri.path().to_owned(), webhook_id, body };
    let _ = shared.notices.send(notice.clone());
    if !terminal {
        return StatusCode::OK;
    }
    let mut answer = shared.answer.clone();
    let answered = answer.wait_for(Option::is_some).await.ok().and_then(|answer| *answer);
    let answered = answered.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if answered.is_success() {
        shared.accepted.lock().unwrap().push(notice);
    }
    answered
}
