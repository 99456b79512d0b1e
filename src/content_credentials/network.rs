//! The network, asked by code that does not wait for futures: c2pa wants signatures and timestamps where it stands.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};

/// A runtime of its own: whoever signs stands on a thread that no other runtime works on, while all of that one's may wait for it.
pub(super) struct Network {
    /// Gone only while it is dropped.
    runtime: Option<Runtime>,
}

impl Network {
    /// # Errors
    /// In words, when the system gives no more of what a runtime needs.
    pub(super) fn new() -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("requests cannot be made from here ({error})"))?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// What comes of it. To be called on a thread of [`super::context::on_a_deep_stack`]: others may not wait.
    pub(super) fn wait_for<T>(&self, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        self.runtime.as_ref().map_or_else(|| Err("the process ends".to_owned()), |runtime| runtime.block_on(asked))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // As it would be dropped else it waits for what it does, which async code must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
