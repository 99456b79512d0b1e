//! Room for large request bodies: so many bytes of them are in memory at the same moment, and whoever brings more is told to come back.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Settings;
use super::problem::Problem;

/// Bytes of one permit: a semaphore has at most 2^32 of them at once.
const UNIT_BYTES: usize = 1024;

/// The room there is; clones share it.
#[derive(Debug, Clone)]
pub struct Uploads {
    room: Arc<Semaphore>,
    limit_bytes: usize,
}

impl Uploads {
    /// For `max_uploads_bytes`, and always for the largest body that is taken at all.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let limit_bytes = settings.max_uploads_bytes.max(settings.max_upload_bytes).max(settings.max_job_bytes);
        let units = limit_bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(units)), limit_bytes }
    }

    /// Room for the body of a request: as much as it says it is long, else as it may be. Given back when it is dropped. None for one
    /// of `small_bytes` at most: those are as many as there are connections.
    ///
    /// # Errors
    /// Busy, when others have it now.
    pub(super) fn take(
        &self,
        headers: &HeaderMap,
        most_bytes: usize,
        small_bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let bytes = declared.unwrap_or(most_bytes).min(most_bytes);
        if bytes <= small_bytes {
            return Ok(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(units).map(Some).map_err(|_| {
            let limit = self.limit_bytes;
            let message =
                format!("the bodies of other requests fill the {limit} bytes there are for them (host.http.max_uploads_bytes)");
            Problem::busy(&message)
        })
    }
}
