//! Results that were generated and are not stored yet, on the host's disk: the job's next attempt stores them in place of generating
//! again, also after `kill -9` of handler and host.
//!
//! - One file per job and request: a line of JSON that says what it holds, then the images' files.
//! - It is written next to and renamed when all of it is on the disk. What a reader cannot verify is removed.
//! - All handlers of a host share the directory. Beyond `max_bytes` the oldest results go: those jobs are generated again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::job::Job;
use crate::job::outcome::InvisibleMark;
use crate::job::safety::SafetyCheck;
use crate::job::task::auto_mask::MadeMask;
use crate::job::user_step::UserStepDone;

/// Settings of section `store.held_results`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where a host keeps what its store does not take; put it on a disk that outlives the container, next to the spool.
    pub directory: PathBuf,
    /// Bytes to keep there at most; beyond, the oldest results go, and their jobs are generated again. 0: nothing is kept.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { directory: "/tmp/atelier/held".into(), max_bytes: 4 << 30 }
    }
}

const RESULT: &str = "result";
const PARTIAL: &str = "partial";
/// What is older and half written, nobody is writing any more.
const STALE: Duration = Duration::from_hours(1);

/// A result: encoded images with what the record says of them.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldResult {
    pub images: Vec<HeldImage>,
    /// Milliseconds by step, of the attempt that generated.
    pub timings_ms: BTreeMap<String, u64>,
    /// What the safety gate was asked, and said.
    pub checks: Vec<SafetyCheck>,
    /// Of the gate that said it; none: there was none.
    pub policy: Option<String>,
    /// Steps of the user's own that it has passed.
    pub user_steps: Vec<UserStepDone>,
    /// What was found in the person's image.
    pub made_mask: Option<MadeMask>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HeldImage {
    pub width_px: u32,
    pub height_px: u32,
    pub seed: u64,
    pub invisible_mark: Option<InvisibleMark>,
    /// Encoded, as it is to be uploaded.
    pub file: Bytes,
}

/// The first line of a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    job_id: String,
    prefix: String,
    fingerprint: String,
    images: Vec<ImageHead>,
    timings_ms: BTreeMap<String, u64>,
    /// Results of earlier releases have none.
    #[serde(default)]
    checks: Vec<SafetyCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    user_steps: Vec<UserStepDone>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_mask: Option<MadeMask>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ImageHead {
    width_px: u32,
    height_px: u32,
    seed: u64,
    bytes: usize,
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    invisible_mark: Option<InvisibleMark>,
}

/// The directory; clones are the same one.
#[derive(Debug, Clone)]
pub struct HeldResults {
    settings: Arc<Settings>,
    /// The store that they are for: another one's jobs may have the same ids.
    store: Arc<str>,
}

impl HeldResults {
    /// Touches nothing yet: a function without a host has no such directory, and needs none.
    #[must_use]
    pub fn new(settings: &super::Settings) -> Self {
        let store = format!("{}\n{}", settings.endpoint_url.as_deref().unwrap_or_default(), settings.bucket);
        Self { settings: Arc::new(settings.held_results.clone()), store: store.into() }
    }

    /// Keeps a result; how many others had to go for it.
    ///
    /// # Errors
    /// When it is larger than all that may be kept, or the disk does not take it.
    pub async fn keep(&self, job: &Job, result: HeldResult) -> io::Result<u64> {
        let settings = self.settings.clone();
        let path = self.path(job);
        let head = head(job, &result);
        let kept = tokio::task::spawn_blocking(move || {
            let head = serde_json::to_vec(&head)?;
            let bytes = result.images.iter().map(|image| image.file.len() as u64).sum::<u64>() + head.len() as u64 + 1;
            if bytes > settings.max_bytes {
                return Err(io::Error::other(format!("it has {bytes} bytes, and {} are kept at most", settings.max_bytes)));
            }
            fs::create_dir_all(&settings.directory)?;
            let dropped = make_room(&settings, bytes)?;
            write_whole(&path, &head, &result.images)?;
            Ok(dropped)
        });
        kept.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    /// The result of this very request, if it is here and as it was written.
    pub async fn get(&self, job: &Job) -> Option<HeldResult> {
        let path = self.path(job);
        let read = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || fs::read(path)).await.ok()?
        };
        let bytes = read.inspect_err(|error| warn_unless_missing(error, "read")).ok()?;
        let result = parse(bytes, job);
        if result.is_none() {
            tracing::warn!(file = %path.display(), "a result on disk is not as it was written; the job is generated again");
            self.remove(job).await;
        }
        result
    }

    /// The store has it, or nobody wants it any more.
    pub async fn remove(&self, job: &Job) {
        if let Err(error) = tokio::fs::remove_file(self.path(job)).await {
            warn_unless_missing(&error, "removed");
        }
    }

    fn path(&self, job: &Job) -> PathBuf {
        let name = Sha256::digest([&*self.store, &*job.output.prefix, job.id.as_str(), &job.fingerprint].join("\n"));
        let name = &base16ct::lower::encode_string(&name)[..40];
        self.settings.directory.join(format!("{name}.{RESULT}"))
    }
}

fn warn_unless_missing(error: &io::Error, what: &str) {
    if error.kind() != io::ErrorKind::NotFound {
        tracing::warn!(%error, "a result on disk could not be {what}");
    }
}

fn head(job: &Job, result: &HeldResult) -> Head {
    let images = result.images.iter().map(|image| ImageHead {
        width_px: image.width_px,
        height_px: image.height_px,
        seed: image.seed,
        bytes: image.file.len(),
        sha256: hash(&image.file),
        invisible_mark: image.invisible_mark.clone(),
    });
    Head {
        job_id: job.id.to_string(),
        prefix: job.output.prefix.clone(),
        fingerprint: job.fingerprint.clone(),
        images: images.collect(),
        timings_ms: result.timings_ms.clone(),
        checks: result.checks.clone(),
        policy: result.policy.clone(),
        user_steps: result.user_steps.clone(),
        made_mask: result.made_mask.clone(),
    }
}

fn hash(file: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(file))
}

/// None: it is another request's, or damaged.
fn parse(bytes: Vec<u8>, job: &Job) -> Option<HeldResult> {
    let mut bytes = Bytes::from(bytes);
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let first = bytes.split_to(end);
    let head: Head = serde_json::from_slice(&first).ok()?;
    let mut rest = bytes.split_off(1);
    let mut images = Vec::with_capacity(head.images.len());
    for image in &head.images {
        if rest.len() < image.bytes {
            return None;
        }
        let file = rest.split_to(image.bytes);
        images.push(HeldImage {
            width_px: image.width_px,
            height_px: image.height_px,
            seed: image.seed,
            invisible_mark: image.invisible_mark.clone(),
            file,
        });
    }
    let result = HeldResult {
        images,
        timings_ms: head.timings_ms.clone(),
        checks: head.checks.clone(),
        policy: head.policy.clone(),
        user_steps: head.user_steps.clone(),
        made_mask: head.made_mask.clone(),
    };
    (rest.is_empty() && self::head(job, &result) == head).then_some(result)
}

/// Removes the oldest results until there is room for `coming_bytes`, and what a killed process left half written.
fn make_room(settings: &Settings, coming_bytes: u64) -> io::Result<u64> {
    let mut results = Vec::new();
    for entry in fs::read_dir(&settings.directory)? {
        let path = entry?.path();
        // Another handler may have removed it meanwhile.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(RESULT) => results.push((written, metadata.len(), path)),
            Some(PARTIAL) if written.elapsed().is_ok_and(|age| age > STALE) => drop(fs::remove_file(path)),
            _ => {}
        }
    }
    results.sort();
    let mut bytes = coming_bytes + results.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
    let mut dropped = 0;
    for (_, length, path) in results {
        if bytes <= settings.max_bytes {
            break;
        }
        tracing::warn!(file = %path.display(), "the oldest result on disk goes: store.held_results.max_bytes is reached");
        dropped += u64::from(fs::remove_file(path).is_ok());
        bytes -= length;
    }
    Ok(dropped)
}

/// The file appears with all of its bytes, and those are on the disk.
fn write_whole(path: &Path, head: &[u8], images: &[HeldImage]) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.{PARTIAL}", Uuid::new_v4().simple()));
    let written = (|| {
        let mut file = File::create(&partial)?;
        file.write_all(head)?;
        file.write_all(b"\n")?;
        for image in images {
            file.write_all(&image.file)?;
        }
        file.sync_all()?;
        fs::rename(&partial, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::request::Defaults;

    fn job(id: &str, prompt: &str) -> Job {
        let defaults: Defaults = serde_json::from_value(json!({ "model": "tiny-sd", "steps": 20, "guidance_scale": 7.5,
            "scheduler": "dpmsolver++", "width": 128, "height": 128, "seed": 42, "prefix": "p/" }))
        .unwrap();
        Job::from_json(json!({ "job_id": id, "prompt": prompt }).to_string().as_bytes(), &defaults).unwrap()
    }

    fn result(byte: u8, bytes: usize) -> HeldResult {
        let why = Some("too small".to_owned());
        let invisible_mark = Some(InvisibleMark { embedded: false, why });
        let file = Bytes::from(vec![byte; bytes]);
        let image =
            |seed| HeldImage { width_px: 64, height_px: 48, seed, invisible_mark: invisible_mark.clone(), file: file.clone() };
        HeldResult {
            images: vec![image(7), image(u64::MAX)],
            timings_ms: BTreeMap::from([("infer".into(), 12)]),
            policy: Some("0123456789ab".into()),
            checks: Vec::new(),
            user_steps: vec![UserStepDone { step: "command:border".into(), changed: true }],
            made_mask: Some(MadeMask {
                classes: vec!["Dress".into()],
                dilate_px: 8,
                coverage: 0.25,
                note: None,
                licence: Some("CC0-1.0".into()),
            }),
        }
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn open(directory: &Path, max_bytes: u64) -> HeldResults {
        let held_results = Settings { directory: directory.join("held"), max_bytes };
        HeldResults::new(&crate::store::Settings { held_results, ..Default::default() })
    }

    #[tokio::test]
    async fn a_result_is_there_for_the_same_request_alone_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let held = open(directory.path(), 1 << 20);
        let other = job("job-1", "a jug");
        let job = job("job-1", "a mug");
        assert_eq!(held.get(&job).await, None);
        assert_eq!(held.keep(&job, result(b'\n', 1_000)).await.unwrap(), 0);
        // Another process reads it.
        let held = open(directory.path(), 1 << 20);
        assert_eq!(held.get(&job).await, Some(result(b'\n', 1_000)));
        assert_eq!(held.get(&other).await, None);
        held.remove(&job).await;
        assert_eq!((held.get(&job).await, files(&directory.path().join("held")).len()), (None, 0));
        held.remove(&job).await;
    }

    #[tokio::test]
    async fn what_is_damaged_or_anothers_is_removed_and_never_used() {
        let directory = tempfile::tempdir().unwrap();
        let held = open(directory.path(), 1 << 20);
        let job_1 = job("job-1", "a mug");
        held.keep(&job_1, result(1, 100)).await.unwrap();
        let path = files(&directory.path().join("held")).remove(0);
        let whole = fs::read(&path).unwrap();
        held.keep(&job("job-2", "a mug"), result(1, 100)).await.unwrap();
        let other = files(&directory.path().join("held")).into_iter().find(|file| *file != path).unwrap();
        let flipped: Vec<u8> = whole.iter().enumerate().map(|(n, byte)| byte ^ u8::from(n == whole.len() - 1)).collect();
        let longer = [whole.clone(), vec![0]].concat();
        for damaged in [&whole[..whole.len() - 1], &flipped, &longer, b"", b"\n", b"{}\n", &fs::read(other).unwrap()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(held.get(&job_1).await, None);
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn the_oldest_results_go_when_there_is_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let held = open(directory.path(), 7_000);
        let jobs = ["a", "b", "c"].map(|id| job(id, "a mug"));
        for (age_s, job) in [(300, &jobs[0]), (200, &jobs[1])] {
            held.keep(job, result(1, 1_000)).await.unwrap();
            let old = SystemTime::now() - Duration::from_secs(age_s);
            File::options().append(true).open(held.path(job)).unwrap().set_modified(old).unwrap();
        }
        let stale = directory.path().join("held/x.partial");
        fs::write(&stale, b"").unwrap();
        File::options().append(true).open(&stale).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();
        assert_eq!(held.keep(&jobs[2], result(1, 1_000)).await.unwrap(), 1);
        let found = [held.get(&jobs[0]).await, held.get(&jobs[1]).await, held.get(&jobs[2]).await];
        assert_eq!(found.map(|found| found.is_some()), [false, true, true]);
        assert!(!stale.exists());
        let refused = held.keep(&jobs[0], result(1, 4_000)).await.unwrap_err().to_string();
        assert!(refused.contains("7000 are kept at most"), "{refused}");
        assert!(held.get(&jobs[1]).await.is_some(), "nothing went for what cannot be kept");
    }
}
