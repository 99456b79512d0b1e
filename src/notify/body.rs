//! The JSON bodies of the notifications.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::job::metadata::Metadata;
use crate::job::notification::Kind;
use crate::job::outcome::{Problem, Record, StoredImage};
use crate::job::{Callback, Job, JobId};

/// `inference.progress`
#[derive(Debug, Clone, Serialize)]
pub(super) struct Progressed {
    #[serde(rename = "type")]
    kind: Kind,
    pub(super) job_id: JobId,
    /// Percent: 0, 25, 50, 75 or 90.
    pub(super) progress: u8,
    metadata: Metadata,
}

/// `inference.complete`
#[derive(Debug, Serialize)]
pub(super) struct Complete<'a> {
    #[serde(rename = "type")]
    kind: Kind,
    job_id: &'a str,
    #[serde(flatten)]
    generated: Generated<'a>,
    /// None where the body is parsed again: no `Value` holds every metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Metadata>,
}

/// What came of a job.
#[derive(Debug, Serialize)]
pub struct Generated<'a> {
    image_urls: &'a [String],
    images: Vec<Image<'a>>,
    model: &'a str,
    /// Milliseconds by workflow step.
    timings_ms: &'a BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct Image<'a> {
    url: &'a str,
    bucket: &'a str,
    key: &'a str,
    content_type: &'a str,
    /// Pixels.
    width: u32,
    height: u32,
    bytes: u64,
    seed: u64,
}

/// `inference.failed`
#[derive(Debug, Serialize)]
pub(super) struct Failed<'a> {
    #[serde(rename = "type")]
    kind: Kind,
    /// Null when the job could not even be read that far, and when the id is another job's.
    job_id: Option<&'a JobId>,
    /// The id that the request would have had, were it not another job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicting_job_id: Option<&'a JobId>,
    error: &'a Problem,
    /// The job had been tried before.
    retried: bool,
    attempts: u32,
    metadata: Metadata,
}

impl Progressed {
    pub(super) fn new(job: &Job) -> Self {
        Self { kind: Kind::Progress, job_id: job.id.clone(), progress: 0, metadata: metadata(job.callback.as_ref()) }
    }
}

impl<'a> Complete<'a> {
    pub(super) fn new(job: &'a Job, record: &'a Record, urls: &'a [String]) -> Self {
        Self {
            kind: Kind::Complete,
            job_id: job.id.as_str(),
            generated: Generated::new(record, urls),
            metadata: Some(metadata(job.callback.as_ref())),
        }
    }
}

impl<'a> Generated<'a> {
    /// `urls`: one an image of the record, in its order.
    #[must_use]
    pub fn new(record: &'a Record, urls: &'a [String]) -> Self {
        Self {
            image_urls: urls,
            images: record.images.iter().zip(urls).map(|(image, url)| Image::new(image, url)).collect(),
            model: &record.model,
            timings_ms: &record.timings_ms,
        }
    }
}

impl<'a> Image<'a> {
    fn new(image: &'a StoredImage, url: &'a str) -> Self {
        let StoredImage { bucket, key, content_type, width_px: width, height_px: height, bytes, seed, .. } = image;
        Self { url, bucket, key, content_type, width: *width, height: *height, bytes: *bytes, seed: *seed }
    }
}

impl<'a> Failed<'a> {
    pub(super) fn new(job_id: Option<&'a JobId>, callback: Option<&Callback>, problem: &'a Problem, attempts: u32) -> Self {
        let conflicting_job_id = job_id.filter(|_| problem.is_conflict());
        Self {
            kind: Kind::Failed,
            job_id: job_id.filter(|_| conflicting_job_id.is_none()),
            conflicting_job_id,
            error: problem,
            retried: attempts > 1,
            attempts,
            metadata: metadata(callback),
        }
    }
}

fn metadata(callback: Option<&Callback>) -> Metadata {
    callback.map(|callback| callback.metadata.clone()).unwrap_or_default()
}
