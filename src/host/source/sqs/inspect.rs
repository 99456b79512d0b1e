//! A look at the queue that takes no message: what it is like, and where its failed messages go.

use aws_sdk_sqs::types::QueueAttributeName;

use super::queue::Queue;
use super::{ConnectError, Settings, SourceError};
use crate::setting::SettingError;

/// What was found.
#[derive(Debug)]
pub struct Found {
    pub fifo: bool,
    pub waiting: u64,
    /// Seconds, of the queue itself; the host sets its own for each message.
    pub visibility_seconds: u64,
    /// Seconds that SQS keeps a message: `MessageRetentionPeriod`.
    pub retention_seconds: u64,
    /// Bytes that a message may have: `MaximumMessageSize`.
    pub most_bytes: usize,
    pub redrive: Option<Redrive>,
}

#[derive(Debug)]
pub struct Redrive {
    /// `maxReceiveCount`.
    pub most_receives: Option<u64>,
    /// URL of the dead-letter queue.
    pub queue: Result<String, SourceError>,
    /// Bytes that a message may have there, where it says so.
    pub most_bytes: Option<usize>,
}

/// # Errors
/// As [`super::Sqs::connect`]; a dead-letter queue that is not there is part of what was found.
pub async fn inspect(settings: &Settings) -> Result<Found, ConnectError> {
    let address = settings.parsed_url()?;
    let client = settings.client(&address).await?;
    let queue = Queue::open(client, settings, address.url, address.fifo).await?;
    let names = [
        QueueAttributeName::VisibilityTimeout,
        QueueAttributeName::ApproximateNumberOfMessages,
        QueueAttributeName::MessageRetentionPeriod,
    ];
    let attributes = queue.attributes(&names).await?;
    let number = |name: &QueueAttributeName| attributes.get(name).and_then(|text| text.parse().ok()).unwrap_or_default();
    let redrive = match queue.redrive_policy().await? {
        None => None,
        Some(policy) => {
            let dead = queue.url_of(policy.target()).await;
            let most_bytes = match &dead {
                Ok(url) => queue.most_bytes_of(url).await.ok(),
                Err(_) => None,
            };
            Some(Redrive { most_receives: policy.most_receives(), queue: dead, most_bytes })
        }
    };
    Ok(Found {
        fifo: queue.fifo(),
        waiting: number(&names[1]),
        visibility_seconds: number(&names[0]),
        retention_seconds: number(&names[2]),
        most_bytes: queue.most_bytes(),
        redrive,
    })
}

impl Settings {
    /// Scheme, host and port of the queue's server.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn server(&self) -> Result<String, SettingError> {
        let address = self.parsed_url()?;
        Ok(self.endpoint_url.clone().unwrap_or(address.endpoint))
    }
}
