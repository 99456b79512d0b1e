//! The bucket's `dead/`: what a function on Lambda refused of Amazon MQ's messages, gone through.

use async_trait::async_trait;

use crate::config::Config;
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};
use crate::host::source::rabbitmq::RabbitMq;
use crate::host::source::rabbitmq::settings::Settings;
use crate::host::source::{Source as _, SourceError};
use crate::job::JobId;
use crate::job::outcome::JobError;
use crate::outbound::Outbound;
use crate::setting::SettingError;
use crate::store::Store;
use crate::store::dead::{DIRECTORY, DeadKey};

/// The messages that a function keeps in its bucket, because their queue has no place for them.
pub(super) struct BucketDeadLetters {
    store: Store,
    place: String,
    /// Of the queue of jobs that they came from.
    queue: Settings,
}

impl BucketDeadLetters {
    /// # Errors
    /// Names the setting of the bucket that is missing or wrong.
    pub(super) async fn connect(config: &Config) -> Result<Self, SettingError> {
        let store = Store::connect(&config.store, Outbound::new(&config.outbound)?).await?;
        let place = format!("s3://{}/{DIRECTORY}", store.bucket());
        Ok(Self { store, place, queue: config.sources.rabbitmq.clone() })
    }

    /// None: it is gone.
    async fn read(&self, DeadKey { key, kept }: &DeadKey) -> Result<Option<DeadLetter>, JobError> {
        let Some(message) = self.store.dead_message(key).await? else { return Ok(None) };
        let reason = Some(format!("{}: {}", message.error.code, message.error.message));
        Ok(Some(DeadLetter { reason, sent: *kept, ..DeadLetter::new(own_id(key), message.body.into_bytes()) }))
    }

    /// `queue`: open once something was sent there.
    async fn carry_out(
        &self,
        decision: Decision,
        key: &str,
        letter: &DeadLetter,
        queue: &mut Option<RabbitMq>,
    ) -> Result<(), SourceError> {
        if decision == Decision::SendAgain {
            let queue = match queue {
                Some(queue) => queue,
                None => queue.insert(self.open()?),
            };
            let id = letter.job_id.as_ref().map_or(letter.id.as_str(), JobId::as_str);
            queue.send(id, &letter.body, None).await?;
        }
        self.store.remove_dead(key).await.map_err(|error| self.unavailable("remove", &error))
    }

    fn open(&self) -> Result<RabbitMq, SourceError> {
        RabbitMq::start(&self.queue).map_err(|error| SourceError::Refused {
            queue: self.place.clone(),
            action: "send again",
            problem: format!("it goes back to RabbitMQ's queue of jobs, and {error}"),
        })
    }

    fn unavailable(&self, action: &'static str, error: &JobError) -> SourceError {
        SourceError::Unavailable { queue: self.place.clone(), action, problem: error.to_string() }
    }
}

/// `0123…` of `dead/0123….json`.
fn own_id(key: &str) -> String {
    let name = key.strip_prefix(DIRECTORY).unwrap_or(key);
    name.strip_suffix(".json").unwrap_or(name).to_owned()
}

#[async_trait]
impl DeadLetters for BucketDeadLetters {
    fn source(&self) -> &'static str {
        "bucket"
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn go_through(&self, operator: &mut dyn Operator) -> Result<(), SourceError> {
        let mut queue = None;
        let keys = self.store.dead_keys().await.map_err(|error| self.unavailable("list", &error))?;
        for found in keys {
            let letter = match self.read(&found).await {
                Ok(Some(letter)) => letter,
                Ok(None) => continue,
                Err(error) => {
                    operator.failed(&DeadLetter::new(own_id(&found.key), Vec::new()), &self.unavailable("read", &error));
                    continue;
                }
            };
            let decision = operator.decide(&letter);
            if decision == Decision::Keep {
                continue;
            }
            match self.carry_out(decision, &found.key, &letter, &mut queue).await {
                Ok(()) => operator.done(&letter),
                Err(error) => operator.failed(&letter, &error),
            }
        }
        Ok(())
    }
}
