//! `atelier doctor`: looks at everything that the function and the host need before they need it, and says how to repair what is wrong.
//!
//! - Checks run at the same time, each within `--limit-s`; one that fails or hangs keeps no other from its answer.
//! - They ask with the clients and settings that the function and the host have: what passes here is what will be used.
//! - Nothing is left but the empty directories of spool and input cache, where they were missing: the probe in the bucket is deleted, no
//!   message is taken, no queue is made.

mod bucket;
mod clock;
mod config;
mod credentials;
mod finding;
mod gpu;
mod inputs;
mod models;
mod queues;
mod safety;
mod signer;
mod token;
mod webhook;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

use self::finding::{Finding, State};
use crate::config::{Config, Environment};

/// Everything but the configuration itself, in the order of the output.
const NEED_CONFIG: [&str; 11] =
    ["credentials", "bucket", "inputs", "queue", "token", "webhook", "signer", "safety", "model", "gpu", "clock"];

#[derive(clap::Args)]
pub struct Options {
    /// Print an array of objects instead of lines: check, state, found, fix
    #[arg(long)]
    json: bool,
    /// Look at the lengths of model files alone, do not hash them
    #[arg(long)]
    quick: bool,
    /// An address that a caller would give as `callback.url`, to be checked as one
    #[arg(long, value_name = "URL")]
    webhook: Vec<Url>,
    /// Seconds that a check may take; hashing has more, by the size of the files
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    limit_s: u64,
}

/// Runs every check and prints what was found; fails where something did.
///
/// # Errors
/// When standard output cannot be written to.
pub async fn run(options: &Options, path: Option<&Path>, environment: &Environment) -> anyhow::Result<ExitCode> {
    let findings = match Config::load(path, environment) {
        Err(error) => without_config(&error.to_string()),
        Ok(config) => {
            let mut findings = vec![config::check(path, environment)];
            findings.extend(Box::pin(examine(options, &config, environment)).await);
            findings
        }
    };
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
    }
    let failed = findings.iter().any(|finding| finding.state == State::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn without_config(problem: &str) -> Vec<Finding> {
    let wrong =
        Finding::fail("config", problem, "repair the file or the variable that it names; docs/configuration.md has every key");
    let skipped = NEED_CONFIG.into_iter().map(|check| Finding::skip(check, "the configuration cannot be read"));
    std::iter::once(wrong).chain(skipped).collect()
}

async fn examine(options: &Options, config: &Config, environment: &Environment) -> Vec<Finding> {
    let limit = Duration::from_secs(options.limit_s);
    let each_model = config.of_each_model();
    let models = each_model.iter().map(|own| models::check(own, environment, options.quick, limit));
    let (credentials, bucket, queues, webhooks, signer, models, gpu, clock) = tokio::join!(
        within(limit, "credentials", credentials::check(config)),
        bucket::check(config, environment, limit),
        queues::check(config, limit),
        webhook::check(config, &options.webhook, limit),
        within(limit, signer::CHECK, signer::check(config)),
        join_all(models),
        within(limit, "gpu", gpu::check(config, environment)),
        clock::check(config, limit),
    );
    let safety = each_model.iter().map(|own| safety::check(own, environment)).collect();
    let before =
        [vec![bucket, inputs::check(config)], queues, vec![token::check(config)], webhooks, vec![signer], safety].concat();
    let others = before.into_iter().chain(models).chain([gpu]).chain(clock).map(without_chain);
    std::iter::once(credentials).chain(others).collect()
}

/// Where the provider chain looked in vain stands with the credentials, and need not stand with all that need some.
fn without_chain(finding: Finding) -> Finding {
    const NONE: &str = "no AWS credentials were found";
    if finding.found.contains(NONE) {
        return Finding::fail(finding.check, NONE, "as with credentials");
    }
    finding
}

/// What a check found, or that it did not end in time.
async fn within(limit: Duration, check: &'static str, work: impl Future<Output = Finding>) -> Finding {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Finding::late(check, limit))
}

/// Runs what blocks on a thread that is left behind when no one waits any more: a thread of tokio's would hold up the end of the process.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, done) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new().name("doctor".into()).spawn(move || drop(sender.send(work())));
    started.ok()?;
    done.await.ok()
}
