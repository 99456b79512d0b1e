//! Inputs from S3 and the web, through the cache, bounded in bytes and time.

use std::error::Error as StdError;
use std::time::{Duration, Instant};
use std::{io, iter};

use aws_sdk_s3::config::Region;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::Store;
use super::cache::Lease;
use super::error::{Failure, Kind};
use crate::job::Job;
use crate::job::outcome::{JobError, RetryPolicy};
use crate::job::url::AssetUrl;
use crate::outbound::{Found, error::OutboundError};
use crate::shown;

/// A connection begins slowly, and what is over sooner has held nobody for long.
const RATE_AFTER: Duration = Duration::from_secs(20);

/// What an input is, and so how large it may be and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    Image,
    /// LoRAs, embeddings and what lies beside them.
    Weights,
}

impl Store {
    /// The input file of a job's `field`, downloaded unless the cache has it still as it is.
    ///
    /// # Errors
    /// [`JobError::Input`] when it is not there, forbidden or too large; [`JobError::Fetch`] when it may be there later.
    pub async fn fetch(&self, asset: &AssetUrl, kind: InputKind, field: &str, job: &Job) -> Result<Lease, JobError> {
        let limit = Duration::from_millis(match kind {
            InputKind::Image => self.settings.image_timeout_ms.min(self.settings.input_timeout_ms),
            InputKind::Weights => self.settings.input_timeout_ms,
        });
        tokio::time::timeout(limit, self.fetch_unbounded(asset, kind, field, job)).await.unwrap_or_else(|_| {
            let problem = format!("{asset} was not complete after {} s; use a faster server", limit.as_secs_f32());
            Err(JobError::Fetch { field: field.to_owned(), problem, cause: None })
        })
    }

    async fn fetch_unbounded(&self, asset: &AssetUrl, kind: InputKind, field: &str, job: &Job) -> Result<Lease, JobError> {
        self.permit(asset, field, job).await?;
        let identity = asset.identity();
        let cached = self.cache.newest(&identity);
        let known_etag = cached.as_ref().map(|(_, etag)| etag.as_str());
        let answer = match asset {
            AssetUrl::S3 { bucket, key } => self.ask_s3(bucket, key, field, known_etag).await?,
            AssetUrl::Http(url) => match self.outbound.get(url, known_etag).await.map_err(|e| e.for_field(field))? {
                Found::NotModified => Answer::NotModified,
                Found::File { etag, response } => {
                    Answer::File { etag, length_bytes: response.content_length(), body: Body::Http(Box::new(response)) }
                }
            },
        };
        match (answer, cached) {
            (Answer::File { etag, .. }, Some((file, known))) if etag.as_ref() == Some(&known) => Ok(file),
            (Answer::File { etag, length_bytes, body }, _) => {
                let max_bytes = match kind {
                    InputKind::Image => self.settings.max_image_bytes.min(self.settings.max_input_bytes),
                    InputKind::Weights => self.settings.max_input_bytes,
                };
                let least_bytes_s = self.settings.min_input_bytes_per_second;
                let download = Downloading { asset, field, max_bytes, least_bytes_s, begun: Instant::now() };
                self.download(&download, etag.as_deref(), length_bytes, body).await
            }
            (Answer::NotModified, Some((file, _))) => Ok(file),
            (Answer::NotModified, None) => {
                let problem = format!("{asset} answered that it did not change, without having been asked");
                Err(JobError::Fetch { field: field.to_owned(), problem, cause: None })
            }
        }
    }

    async fn ask_s3(&self, bucket: &str, key: &str, field: &str, known_etag: Option<&str>) -> Result<Answer, JobError> {
        let get = self.client.get_object().bucket(bucket).key(key).set_if_none_match(known_etag.map(str::to_owned));
        let mut answer = get.clone().send().await.map_err(Failure::new);
        let region = answer.as_ref().err().filter(|failure| failure.kind != Kind::Condition);
        if let Some(region) = region.and_then(|failure| failure.bucket_region.clone()).filter(|region| !self.is_in(region)) {
            // Once: what the bucket's own region answers counts.
            let there = aws_sdk_s3::config::Builder::new().region(region);
            answer = get.customize().config_override(there).send().await.map_err(Failure::new);
        }
        match answer {
            Ok(object) => Ok(Answer::File {
                etag: object.e_tag,
                length_bytes: object.content_length.and_then(|bytes| u64::try_from(bytes).ok()),
                body: Body::S3(Box::new(object.body)),
            }),
            Err(failure) if failure.kind == Kind::Condition && known_etag.is_some() => Ok(Answer::NotModified),
            Err(failure) => Err(failure.input(field, self.request_in("s3:GetObject", bucket, key))),
        }
    }

    /// Whether that is the region that is asked anyway.
    fn is_in(&self, region: &Region) -> bool {
        self.client.config().region() == Some(region)
    }

    async fn download(
        &self,
        of: &Downloading<'_>,
        etag: Option<&str>,
        length_bytes: Option<u64>,
        mut body: Body,
    ) -> Result<Lease, JobError> {
        of.check_length(length_bytes.unwrap_or(0))?;
        let mut download = self.cache.begin(length_bytes.unwrap_or(0)).await.map_err(disk)?;
        let mut bytes = 0;
        while let Some(chunk) = body.chunk().await.map_err(|broken| of.broken(&broken))? {
            bytes += chunk.len() as u64;
            of.check_length(bytes)?;
            of.check_rate(bytes)?;
            download.file.write_all(&chunk).await.map_err(disk)?;
        }
        download.file.flush().await.map_err(disk)?;
        if length_bytes.is_some_and(|length| length != bytes) {
            return Err(of.broken(&Broken::Off(format!("{bytes} bytes came"))));
        }
        download.keep(&of.asset.identity(), etag, bytes).map_err(disk)
    }
}

enum Answer {
    NotModified,
    File { etag: Option<String>, length_bytes: Option<u64>, body: Body },
}

enum Body {
    S3(Box<ByteStream>),
    Http(Box<reqwest::Response>),
}

/// Why a body was not complete.
enum Broken {
    Off(String),
    /// It came in full, and is not what the server computed its checksum of.
    Checksum(String),
}

impl Body {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::S3(stream) => stream.try_next().await.map_err(|error| of_stream(&error)),
            Self::Http(response) => {
                response.chunk().await.map_err(|error| Broken::Off(OutboundError::Connection(error.without_url()).to_string()))
            }
        }
    }
}

/// The SDK compares checksums while the body is read, and has no public type for one that differs.
fn of_stream(error: &(dyn StdError + 'static)) -> Broken {
    let all = iter::once(error).chain(shown::causes(error));
    match all.map(ToString::to_string).find(|text| text.contains("checksum mismatch")) {
        Some(text) => Broken::Checksum(text),
        None => Broken::Off(shown::deepest_cause(error).to_string()),
    }
}

struct Downloading<'a> {
    asset: &'a AssetUrl,
    field: &'a str,
    max_bytes: u64,
    /// A second, on average.
    least_bytes_s: u64,
    begun: Instant,
}

/// Whether so many bytes in so long are fewer than `least_bytes_s` a second.
fn is_too_slow(bytes: u64, taken: Duration, least_bytes_s: u64) -> bool {
    taken >= RATE_AFTER && bytes < least_bytes_s.saturating_mul(taken.as_secs())
}

impl Downloading<'_> {
    fn check_length(&self, bytes: u64) -> Result<(), JobError> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        let problem = format!("{} is too large: at most {} bytes are allowed", self.asset, self.max_bytes);
        Err(JobError::Input { field: self.field.to_owned(), problem, cause: None })
    }

    fn check_rate(&self, bytes: u64) -> Result<(), JobError> {
        let taken = self.begun.elapsed();
        if !is_too_slow(bytes, taken, self.least_bytes_s) {
            return Ok(());
        }
        let problem = format!(
            "{} came too slowly: {bytes} bytes in {} s, at least {} a second are needed (store.min_input_bytes_per_second); use a \
             faster server",
            self.asset,
            taken.as_secs(),
            self.least_bytes_s
        );
        Err(JobError::Fetch { field: self.field.to_owned(), problem, cause: None })
    }

    fn broken(&self, broken: &Broken) -> JobError {
        let problem = match broken {
            Broken::Off(problem) => format!("{} broke off: {problem}", self.asset),
            Broken::Checksum(problem) => {
                format!("{} does not have the checksum that S3 keeps of it ({problem}); it was changed on its way", self.asset)
            }
        };
        JobError::Fetch { field: self.field.to_owned(), problem, cause: None }
    }
}

fn disk(error: io::Error) -> JobError {
    let problem = format!("the cache of inputs could not be written ({error}); check store.cache.directory and its free space");
    JobError::Storage { problem, retry_policy: RetryPolicy::Retry, cause: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drips_is_too_slow_and_what_begins_slowly_is_not() {
        for (bytes, seconds, is_slow) in
            [(0, 19, false), (1, 20, true), (65_536 * 20, 20, false), (65_536 * 20, 21, true), (u64::MAX, 300, false)]
        {
            assert_eq!(is_too_slow(bytes, Duration::from_secs(seconds), 65_536), is_slow, "{bytes} bytes in {seconds} s");
        }
        assert!(!is_too_slow(0, Duration::from_hours(1), 0), "no least rate");
    }
}
