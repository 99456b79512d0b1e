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
