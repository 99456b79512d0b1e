//! How c2pa is set up here: without the network, and without thumbnails.

use c2pa::Context;
use serde_json::json;

/// What everything of C2PA here works with. `trust_anchors`: PEM of the roots that are trusted.
pub(super) fn context(trust_anchors: Option<&str>) -> Result<Context, String> {
    let settings = json!({
        "trust": { "trust_anchors": trust_anchors },
        // No one is asked over the network, whatever an image says.
        "verify": { "remote_manifest_fetch": false, "ocsp_fetch": false },
        "core": { "allowed_network_hosts": [] },
        "builder": { "thumbnail": { "enabled": false } },
    });
    Context::new().with_settings(settings.to_string()).map_err(|error| format!("content credentials cannot be set up: {error}"))
}

/// Runs what walks through manifests on a stack of its own: c2pa goes down a chain of inputs by recursion, 200 deep at most, and a thread
/// that has 2 MiB overflows before that. An overflow would end the process, whoever made the image.
///
/// # Errors
/// When there is no thread for it, or it panicked.
pub(super) fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    const STACK_BYTES: usize = 64 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("c2pa".into()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("no thread can be started ({error})"))?;
        thread.join().map_err(|_| "manifests could not be read or written: the library panicked".to_owned())
    })
}
