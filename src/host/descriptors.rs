//! How many HTTP connections fit into this process's file descriptors, next to what its own work needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, and says how many of `wanted` connections fit: half of the
/// descriptors stay free for queues, files, handlers and webhooks.
#[must_use]
pub fn connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let fit = wanted.min(files / 2);
    if fit < wanted {
        tracing::warn!(
            files,
            max_connections = fit,
            wanted,
            "the limit of open files (ulimit -n) leaves room for fewer connections"
        );
    }
    fit
}
