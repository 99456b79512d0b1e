//! Whether the bucket can be listed, written to, read, and written to on condition.

use std::time::Duration;

use uuid::Uuid;

use super::finding::Finding;
use super::within;
use crate::config::{Config, Environment};
use crate::job::outcome::JobError;
use crate::outbound::Outbound;
use crate::setting::SettingError;
use crate::store::probe::Writes;
use crate::store::{self, Store};

const CHECK: &str = "bucket";
const CONTENT: &[u8] = b"atelier doctor";
/// So that a server that is away is reported within the limit.
const ATTEMPTS: u32 = 2;
const HOW: &str = "correct what it names: store.bucket, store.region, store.endpoint_url, the credentials, or their policy (s3:ListBucket, s3:GetObject, s3:PutObject)";

pub(super) async fn check(config: &Config, environment: &Environment, limit: Duration) -> Finding {
    if config.store.bucket.is_empty() {
        return Finding::fail(CHECK, "store.bucket is not set", "set AWS_STORAGE_BUCKET_NAME to the bucket for the images");
    }
    let store = match tokio::time::timeout(limit, connect(config)).await {
        Ok(Ok(store)) => store,
        Err(_) => return Finding::late(CHECK, limit),
        Ok(Err(error)) => return Finding::fail(CHECK, error.to_string(), "correct this setting"),
    };
    // Where images go that say nothing else: a policy may allow this prefix alone.
    let prefix = config.manifest(environment).map(|manifest| manifest.defaults.prefix).unwrap_or_default();
    let key = format!("{prefix}.doctor/{}", Uuid::new_v4());
    let mut wrote = false;
    let found = within(limit, CHECK, Box::pin(steps(&store, &key, &mut wrote))).await;
    if !wrote {
        return found;
    }
    match tokio::time::timeout(limit, store.delete_probe(&key)).await {
        Ok(Ok(())) => found,
        Ok(Err(error)) => left_behind(found, &key, &error.to_string()),
        Err(_) => left_behind(found, &key, "no answer in time"),
    }
}

async fn connect(config: &Config) -> Result<Store, SettingError> {
    let settings = store::Settings { max_attempts: config.store.max_attempts.min(ATTEMPTS), ..config.store.clone() };
    Store::connect(&settings, Outbound::new(&config.outbound)?).await
}

/// `wrote`: whether there may be something to delete, also when this is dropped in between.
async fn steps(store: &Store, key: &str, wrote: &mut bool) -> Finding {
    let fail = |error: JobError| Finding::fail(CHECK, error.to_string(), HOW);
    if let Err(error) = store.probe().await {
        return fail(error);
    }
    *wrote = true;
    if let Err(error) = store.write_probe(key, CONTENT).await {
        return fail(error);
    }
    match store.read_probe(key).await {
        Ok(content) if content == CONTENT => {}
        Ok(content) => {
            let found = format!("s3://{}/{key} had {} bytes and came back as {}", store.bucket(), CONTENT.len(), content.len());
            return Finding::fail(CHECK, found, "this server keeps no object as it is written; use another");
        }
        Err(error) => return fail(error),
    }
    match store.probe_writes(key).await {
        Ok(Writes::OnCondition) => Finding::ok(CHECK, format!("{}: listed, written, read, kept on condition", store.bucket())),
        Ok(writes) => Finding::warn(
            CHECK,
            format!("{}: {}", store.bucket(), writes.warning()),
            "use a server with conditional writes (AWS S3, a recent MinIO or Ceph), or one host alone",
        ),
        Err(error) => fail(error),
    }
}

fn left_behind(found: Finding, key: &str, problem: &str) -> Finding {
    if found.fix.is_some() {
        return Finding { found: format!("{}; the probe {key} could not be deleted", found.found), ..found };
    }
    Finding::warn(
        CHECK,
        format!("{}; the probe {key} could not be deleted ({problem})", found.found),
        "delete it by hand; without s3:DeleteObject images of attempts that came second stay in the bucket as well",
    )
}
