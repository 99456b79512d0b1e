//! Which files a job may have as its inputs: what the operator listed, and in the results bucket what is nobody else's.
//!
//! - A bucket of `store.input_buckets` is open. An empty list means the results bucket alone, after the release that only warns.
//! - The results bucket keeps to itself what is not for callers: `idempotency/`, `dead/`, records, the `inputs/` of other ids, and
//!   the images of other jobs, unless `store.allow_results_as_inputs`.
//! - The function's credentials sign `s3://` requests alone. An `https://` address of the results bucket is held to the same rules,
//!   unless it is presigned: then whoever signed it may read it anyway.

use serde::Deserialize;
use url::Url;

use super::input::DIRECTORY as INPUTS;
use super::{Store, blocked};
use crate::job::outcome::JobError;
use crate::job::url::AssetUrl;
use crate::job::{Job, OWN_DIRECTORIES};
use crate::shown;

const RECORD: &str = "result.json";
/// Characters of the two halves of the directory of an attempt: `{12 of the fingerprint}-{attempt}`.
const HALF_OF_ATTEMPT: usize = 12;

/// What becomes of `s3://` inputs from buckets that are not listed, where `store.input_buckets` is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnlistedBuckets {
    /// They are read, and a warning names the bucket.
    Warn,
    Refuse,
}

/// What is known of a file before anybody is asked for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    /// Granted in this release: the bucket is to be listed.
    Unlisted,
    /// It may be an image of a job of an earlier release: then this record lies beside it.
    UnlessRecord(String),
}

impl Store {
    /// Refuses a job one of whose inputs may not be read, as far as its address says.
    ///
    /// # Errors
    /// [`JobError::Input`], which names the field and what is allowed.
    pub fn check_inputs(&self, job: &Job) -> Result<(), JobError> {
        for (field, asset) in job.inputs() {
            self.permission(asset, job).map_err(|problem| refused(&field, problem))?;
            if let AssetUrl::Http(url) = asset {
                self.outbound.check(url).map_err(|error| error.for_field(&field))?;
            }
        }
        Ok(())
    }

    /// As [`Self::check_inputs`] for one of them, with what only the bucket knows.
    pub(super) async fn permit(&self, asset: &AssetUrl, field: &str, job: &Job) -> Result<(), JobError> {
        match self.permission(asset, job).map_err(|problem| refused(field, problem))? {
            Permission::Unlisted => {
                tracing::warn!(
                    field,
                    input = %asset,
                    "an input lies in a bucket that store.input_buckets does not list: 0.2.0 refuses it, as \
                     `store.unlisted_input_buckets: refuse` does now"
                );
                Ok(())
            }
            Permission::UnlessRecord(key) if self.has_object(&key).await? => Err(refused(field, others_image())),
            Permission::Granted | Permission::UnlessRecord(_) => Ok(()),
        }
    }

    fn permission(&self, asset: &AssetUrl, job: &Job) -> Result<Permission, String> {
        match asset {
            AssetUrl::S3 { bucket, key } => {
                let listed = &self.settings.input_buckets;
                // S3 knows lower case alone; a server on a disk that ignores case may know more.
                let is_own = bucket.eq_ignore_ascii_case(&self.settings.bucket);
                let is_listed = listed.iter().any(|name| name == bucket);
                if is_own && (is_listed || listed.is_empty() || key.starts_with(INPUTS)) {
                    return self.permission_in_own(key, job);
                }
                if is_listed {
                    return Ok(Permission::Granted);
                }
                if !listed.is_empty() {
                    return Err(format!("must lie in one of the buckets {}, got {}", listed.join(", "), shown::text(bucket)));
                }
                if is_access_point(bucket) {
                    let advice = "an access point has to be listed in store.input_buckets";
                    return Err(format!("must name a bucket, got {}: {advice}", shown::text(bucket)));
                }
                match self.settings.unlisted_input_buckets {
                    UnlistedBuckets::Warn => Ok(Permission::Unlisted),
                    UnlistedBuckets::Refuse => {
                        let own = &self.settings.bucket;
                        let advice = "the operator can list other buckets in store.input_buckets";
                        Err(format!("must lie in the bucket {own}, got {}: {advice}", shown::text(bucket)))
                    }
                }
            }
            AssetUrl::Http(url) if !asset.is_presigned() => match self.own_key(url) {
                Some(key) => self.permission_in_own(&key, job),
                None => Ok(Permission::Granted),
            },
            AssetUrl::Http(_) => Ok(Permission::Granted),
        }
    }

    fn permission_in_own(&self, key: &str, job: &Job) -> Result<Permission, String> {
        let mut granted = Permission::Granted;
        for reading in readings(key)? {
            let parts: Vec<&str> = reading.split('/').filter(|part| !part.is_empty()).collect();
            match self.permission_of(&parts, job)? {
                Permission::Granted | Permission::Unlisted => {}
                unless @ Permission::UnlessRecord(_) => granted = unless,
            }
        }
        Ok(granted)
    }

    /// `parts`: of a key of the results bucket, between its slashes.
    fn permission_of(&self, parts: &[&str], job: &Job) -> Result<Permission, String> {
        let own: Vec<&str> = job.output.prefix.split('/').filter(|part| !part.is_empty()).chain([job.id.as_str()]).collect();
        // What lies in no directory is none of them.
        let [first, .., file] = parts else { return Ok(Permission::Granted) };
        let directory = &parts[..parts.len() - 1];
        if *first == INPUTS.trim_end_matches('/') {
            if parts[1] == job.id.as_str() {
                return Ok(Permission::Granted);
            }
            return Err(format!(
                "must not lie among the inputs of another job; those of this one are under {INPUTS}{}/",
                job.id
            ));
        }
        if OWN_DIRECTORIES.contains(first) {
            return Err(format!("must not lie under {first}/ of the results bucket, which is the function's own"));
        }
        if [RECORD, blocked::FILE].contains(file) || is_note_of_failure(file) {
            return Err("must not be the record of a job".to_owned());
        }
        // A caller chooses prefix and id, which may name a directory above those of other jobs, or an attempt of one.
        let is_own = match directory.strip_prefix(&*own) {
            Some([]) => !is_attempt(job.id.as_str()),
            Some([attempt]) => is_attempt(attempt),
            _ => false,
        };
        if is_own || self.settings.allow_results_as_inputs || !is_image(file) {
            return Ok(Permission::Granted);
        }
        match directory.last() {
            Some(attempt) if is_attempt(attempt) => Err(others_image()),
            _ => Ok(Permission::UnlessRecord(format!("{}/{RECORD}", directory.join("/")))),
        }
    }

    /// The key in the results bucket that a URL leads to, if it does.
    fn own_key(&self, url: &Url) -> Option<String> {
        let host = url.host_str()?.to_ascii_lowercase();
        let bucket = self.settings.bucket.to_ascii_lowercase();
        let path = url.path().trim_start_matches('/');
        let server = match &self.settings.endpoint_url {
            Some(endpoint) => {
                Url::parse(endpoint).ok().filter(|own| url.port_or_known_default() == own.port_or_known_default())?
            }
            None => return aws_key(&host, &bucket, path),
        };
        let server = server.host_str()?.to_ascii_lowercase();
        if host == format!("{bucket}.{server}") {
            return Some(path.to_owned());
        }
        behind_bucket(path, &bucket).filter(|_| host == server)
    }
}

/// Of an address of S3 itself, in each of its forms: the bucket in the host or in the path, in a region or not.
fn aws_key(host: &str, bucket: &str, path: &str) -> Option<String> {
    if !host.ends_with(".amazonaws.com") && !host.ends_with(".amazonaws.com.cn") {
        return None;
    }
    if host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with(".s3")) {
        return Some(path.to_owned());
    }
    behind_bucket(path, bucket).filter(|_| host.starts_with("s3"))
}

/// The key in a path that begins with the bucket.
fn behind_bucket(path: &str, bucket: &str) -> Option<String> {
    path.split_once('/').filter(|(first, _)| first.eq_ignore_ascii_case(bucket)).map(|(_, key)| key.to_owned())
}

fn refused(field: &str, problem: String) -> JobError {
    JobError::Input { field: field.to_owned(), problem, cause: None }
}

fn others_image() -> String {
    "must not be the image of another job; the operator can allow it with store.allow_results_as_inputs".to_owned()
}

/// A name under which S3 knows another bucket, of which nothing here says which.
fn is_access_point(bucket: &str) -> bool {
    ["-s3alias", "--ol-s3"].iter().any(|ending| bucket.ends_with(ending))
}

/// The ways in which servers and proxies read a key: as it is, and with its percent-escapes undone, once and again.
///
/// # Errors
/// When one of them walks: `..` and `.` are names for S3, and directories for others.
fn readings(key: &str) -> Result<Vec<String>, String> {
    /// A key that is escaped more often is one that hides something.
    const MAX_READINGS: usize = 4;
    let mut readings = vec![key.to_owned()];
    while let Some(last) = readings.last() {
        let decoded = percent_encoding::percent_decode_str(last).decode_utf8_lossy().into_owned();
        if decoded == *last {
            break;
        }
        if readings.len() == MAX_READINGS {
            return Err("must not be percent-encoded again and again".to_owned());
        }
        readings.push(decoded);
    }
    if readings.iter().any(|reading| reading.split(['/', '\\']).any(|part| matches!(part, "." | ".."))) {
        return Err("must not have . or .. between its slashes".to_owned());
    }
    Ok(readings)
}

/// `{n}.{png, jpg, webp}`
fn is_image(file: &str) -> bool {
    let extensions = ["png", "jpg", "webp"];
    let parts = file.split_once('.').filter(|(_, extension)| extensions.contains(extension));
    parts.is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// As `failed.rs` names them.
fn is_note_of_failure(file: &str) -> bool {
    file.strip_prefix("failed-").and_then(|rest| rest.strip_suffix(".json")).is_some_and(|message| !message.is_empty())
}

fn is_attempt(directory: &str) -> bool {
    let is_hex = |half: &str| half.len() == HALF_OF_ATTEMPT && half.bytes().all(|byte| byte.is_ascii_hexdigit());
    directory.split_once('-').is_some_and(|(request, attempt)| is_hex(request) && is_hex(attempt))
}
