//! Whether the store does what jobs need of it. While it does not, nothing is received, and one probe asks until it does again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::store::Store;
use crate::store::probe::Writes;

const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// For one probe: a store that hangs is asked again rather than waited for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the host knows of the store; clones know the same.
#[derive(Clone)]
pub struct StoreHealth {
    store: Arc<Store>,
    /// Of the object that is written to find out.
    key: String,
    trouble: watch::Sender<Option<String>>,
    is_probing: Arc<AtomicBool>,
    /// When a probe last found the store usable after trouble.
    recovered: Arc<Mutex<Option<SystemTime>>>,
}

impl StoreHealth {
    /// `prefix`: where images go that say nothing else; a policy may allow this prefix alone.
    #[must_use]
    pub fn new(store: Arc<Store>, prefix: &str) -> Self {
        let key = Store::probe_key(prefix);
        Self { store, key, trouble: watch::Sender::new(None), is_probing: Arc::default(), recovered: Arc::default() }
    }

    /// Why the store cannot be used; none while it can, as far as is known.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    #[must_use]
    pub fn is_away(&self) -> bool {
        self.trouble.borrow().is_some()
    }

    /// Whether the store was in trouble after that moment and came out of it. What it still does not do for a message that has waited
    /// since then is about that message's own objects: one key that is denied must not stop all other jobs.
    #[must_use]
    pub fn recovered_since(&self, moment: SystemTime) -> bool {
        let recovered = *self.recovered.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_away() && recovered.is_some_and(|recovered| recovered > moment)
    }

    /// The store did not do what a job needed: it is in trouble until a probe finds that it is not.
    pub fn report(&self, problem: &str) {
        let is_news = self.trouble.send_if_modified(|trouble| {
            let is_news = trouble.is_none();
            trouble.get_or_insert_with(|| problem.to_owned());
            is_news
        });
        if is_news {
            tracing::error!(problem, "the store cannot be used: nothing is received until it can");
        }
        self.probe();
    }

    /// Asks until the store can be used, in the background.
    pub fn probe(&self) {
        if !self.is_probing.swap(true, Ordering::SeqCst) {
            tokio::spawn(self.clone().until_it_works());
        }
    }

    async fn until_it_works(self) {
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        let writes = loop {
            // First whether the bucket is there: some servers make one that is written to.
            let probing = async {
                self.store.probe().await?;
                self.store.probe_writes(&self.key).await
            };
            let probed = tokio::time::timeout(PROBE_TIMEOUT, probing).await;
            let problem = match probed {
                Ok(Ok(writes)) => break writes,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("storage: no answer within {} s", PROBE_TIMEOUT.as_secs()),
            };
            let pause = backoff.next_pause();
            tracing::warn!(problem, pause_ms = pause.as_millis() as u64, "the store cannot be used yet");
            self.trouble.send_replace(Some(problem));
            tokio::time::sleep(pause).await;
        };
        match writes {
            Writes::OnCondition => tracing::info!("the store does what jobs need of it"),
            Writes::ConditionIgnored | Writes::Unconditional => tracing::warn!("{}", writes.warning()),
        }
        // In this order: trouble that is reported in between starts a probe of its own.
        self.is_probing.store(false, Ordering::SeqCst);
        *self.recovered.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
        self.trouble.send_replace(None);
    }
}
