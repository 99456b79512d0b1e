//! What settles a host's messages, in this process: with a real bucket, a real backend, and a queue that fails as a test says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier::host::answer::{Answer, Ended};
use atelier::host::dispatch::Assignment;
use atelier::host::dispatch::acknowledge::{Acknowledger, Retries};
use atelier::host::in_flight::InFlight;
use atelier::host::jobs::Jobs;
use atelier::host::notification_sender::NotificationSender;
use atelier::host::outbox::{Outbox, Services};
use atelier::host::source::Message;
use atelier::host::store_health::StoreHealth;
use atelier::job::Job;
use atelier::metrics::Metrics;
use atelier::metrics::gpu::Gpus;
use atelier::notify::Notifier;
use atelier::notify::tryon::{AssetService, LoadBalancer, TryOnService};
use atelier::outbound::Outbound;
use atelier::setting::Secret;
use atelier::store::Store;
use atelier::{notify, outbound};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{catalogue, store_settings};
use super::shelf::Shelf;
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::requests::contract;
use crate::stage::TOKEN;

pub(crate) struct Bench {
    pub(crate) bucket: Bucket,
    pub(crate) backend: Backend,
    pub(crate) store: Arc<Store>,
    pub(crate) acknowledger: Acknowledger,
    _cache: TempDir,
}

impl Bench {
    /// What nobody takes is given up after three seconds. `change`: what is different from the default.
    pub(crate) async fn open(change: impl FnOnce(&mut notify::Settings)) -> Self {
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let cache = tempfile::tempdir().unwrap();
        let outbound = Outbound::new(&outbound::Settings::default()).unwrap();
        let settings = store_settings(&bucket, cache.path());
        let store = Arc::new(Store::connect(&settings, outbound.clone()).await.unwrap());
        let address = format!("http://{}", backend.address);
        let mut settings = notify::Settings {
            backend_api_url: Some(address.clone()),
            internal_api_token: Some(Secret::new(TOKEN)),
            give_up_after_hours: 3.0 / 3_600.0,
            ..notify::Settings::default()
        };
        change(&mut settings);
        let assets =
            AssetService { callback_url: Some(format!("{address}/assets")), internal_auth_token: Some(Secret::new(TOKEN)) };
        let model = contract().model;
        let tryon = TryOnService::new(&assets, &LoadBalancer::default(), "gpu-1", &model, store.clone()).unwrap();
        let notifier = Arc::new(Notifier::new(&settings, outbound).unwrap().with_tryon(tryon));
        let moment = Duration::from_millis(20);
        let store_health = StoreHealth::new(store.clone(), "");
        let sender = NotificationSender { notifier, store: store.clone() };
        let services = Services { sender, store_health: store_health.clone() };
        let force_shutdown = CancellationToken::new();
        let acknowledger = Acknowledger {
            jobs: Arc::new(Jobs::default()),
            store_health,
            outbox: Outbox::new(services, &settings, (moment, moment), force_shutdown.clone()),
            retries: Retries { max_attempts: 3, initial_backoff: moment, max_backoff: moment },
            token: None,
            metrics: Metrics::new(Gpus::none()).unwrap(),
            under_way: TaskTracker::new(),
            force_shutdown,
        };
        Self { bucket, backend, store, acknowledger, _cache: cache }
    }

    /// Settles one message that a function has taken.
    pub(crate) async fn taken(&self, shelf: &Arc<Shelf>, body: &Value) {
        let reply = Bytes::from_static(b"{\"batchItemFailures\": []}");
        let ended = Ended::Answered(Answer::Reply { body: reply, http_stream: false });
        self.acknowledger.acknowledge(Assignment::Messages(vec![in_flight(shelf, body)]), ended);
        self.settled().await;
    }

    /// Returns when nothing is under way any more; nothing begins afterwards.
    pub(crate) async fn settled(&self) {
        self.acknowledger.under_way.close();
        let all = tokio::time::timeout(super::WAIT_LIMIT, self.acknowledger.under_way.wait()).await;
        all.expect("everything is settled in time");
    }
}

/// A message with this body in its first delivery.
pub(crate) fn in_flight(shelf: &Arc<Shelf>, body: &Value) -> InFlight {
    in_flight_with(shelf, body, |_| ())
}

/// `change`: what is different from that.
pub(crate) fn in_flight_with(shelf: &Arc<Shelf>, body: &Value, change: impl FnOnce(&mut Message)) -> InFlight {
    let mut message = Message {
        id: "m-1".into(),
        identity: "m-1".into(),
        receipt: "r-1".into(),
        attempt: 1,
        deferral: None,
        group: None,
        body: body.to_string().into_bytes(),
        trace: None,
        sent: None,
        received: Instant::now(),
        ended: None,
        record: json!({ "messageId": "m-1" }),
    };
    change(&mut message);
    InFlight::new(shelf.clone(), message, &catalogue())
}

pub(crate) fn job_of(body: &Value) -> Job {
    Job::from_json(body.to_string().as_bytes(), &contract()).unwrap()
}
