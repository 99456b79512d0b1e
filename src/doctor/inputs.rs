//! Where the inputs of jobs may come from, and what of it ends with this release.

use super::finding::Finding;
use crate::config::Config;
use crate::store::permitted::UnlistedBuckets;

const CHECK: &str = "inputs";

pub(super) fn check(config: &Config) -> Finding {
    let store = &config.store;
    let results = if store.allow_results_as_inputs { " and every job's images" } else { "" };
    if !store.input_buckets.is_empty() {
        return Finding::ok(CHECK, format!("s3:// inputs from {}{results}", store.input_buckets.join(", ")));
    }
    match store.unlisted_input_buckets {
        UnlistedBuckets::Refuse => Finding::ok(CHECK, format!("s3:// inputs from the results bucket alone{results}")),
        UnlistedBuckets::Warn => Finding::warn(
            CHECK,
            "callers may read every bucket that the credentials can read; 0.2.0 refuses all but the results bucket",
            "list the buckets of LoRAs and images in store.input_buckets (the log names those in use), or set \
             store.unlisted_input_buckets: refuse now",
        ),
    }
}
