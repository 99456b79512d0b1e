//! A backend that receives notifications: real HTTP on loopback, answering as the test says.

use std::collections::BTreeMap;
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
pub(crate) struct Notification {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) webhook_id: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) body: Value,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// What terminal notifications are answered; none: never.
    pub(crate) answer: watch::Sender<Option<StatusCode>>,
    notifications: mpsc::UnboundedReceiver<Notification>,
    accepted: Arc<Mutex<Vec<Notification>>>,
}

struct Shared {
    accepted: Arc<Mutex<Vec<Notification>>>,
    answer: watch::Receiver<Option<StatusCode>>,
    notifications: mpsc::UnboundedSender<Notification>,
}

impl Backend {
    pub(crate) async fn start() -> Self {
        let (answer, answers) = watch::channel(Some(StatusCode::OK));
        let (sender, notifications) = mpsc::unbounded_channel();
        let accepted = Arc::<Mutex<Vec<Notification>>>::default();
        let shared = Shared { accepted: accepted.clone(), answer: answers, notifications: sender };
        let router = Router::new().fallback(receive).with_state(Arc::new(shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, answer, notifications, accepted }
    }

    /// The terminal notifications that were answered with a 2xx so far.
    pub(crate) fn accepted(&self) -> Vec<Notification> {
        self.accepted.lock().unwrap().clone()
    }

    /// The next terminal notification, within a minute; progress on the way is dropped.
    pub(crate) async fn terminal(&mut self) -> Notification {
        loop {
            let next = timeout(Duration::from_mins(1), self.notifications.recv());
            let notification = next.await.expect("no terminal notification for a minute").unwrap();
            if notification.method != Method::PATCH {
                return notification;
            }
        }
    }

    /// So many terminal notifications, in whichever order they come, by the job that each is of: one a job.
    pub(crate) async fn terminals(&mut self, count: usize) -> BTreeMap<String, Notification> {
        let mut by_job = BTreeMap::new();
        for _ in 0..count {
            let notification = self.terminal().await;
            let job = notification.body["job_id"].as_str().unwrap().to_owned();
            assert!(by_job.insert(job.clone(), notification).is_none(), "{job} is reported twice");
        }
        by_job
    }

    /// The next notification of any kind, within a minute.
    pub(crate) async fn next(&mut self) -> Notification {
        timeout(Duration::from_mins(1), self.notifications.recv()).await.expect("no notification for a minute").unwrap()
    }

    /// Everything that has arrived and was not looked at.
    pub(crate) fn arrived(&mut self) -> Vec<Notification> {
        std::iter::from_fn(|| self.notifications.try_recv().ok()).collect()
    }
}

async fn receive(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let webhook_id = header("webhook-id").unwrap_or_default();
    let traceparent = header("traceparent");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let terminal = method != Method::PATCH;
    let notification = Notification { method, path: uri.path().to_owned(), webhook_id, traceparent, body };
    let _ = shared.notifications.send(notification.clone());
    if !terminal {
        return StatusCode::OK;
    }
    let mut answer = shared.answer.clone();
    let answered = answer.wait_for(Option::is_some).await.ok().and_then(|answer| *answer);
    let answered = answered.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if answered.is_success() {
        shared.accepted.lock().unwrap().push(notification);
    }
    answered
}
