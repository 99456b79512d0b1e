//! What the host needs to notify callers: what writes and sends notifications, and the bucket that knows which jobs are complete.

use std::sync::Arc;

use crate::notify::Notifier;
use crate::store::Store;

/// Clones share their connections.
#[derive(Clone)]
pub struct NotificationSender {
    pub notifier: Arc<Notifier>,
    pub store: Arc<Store>,
}
