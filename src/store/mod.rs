//! S3: images and records go in, inputs come out.
//!
//! - An image is `{prefix}{job_id}/{12 of the fingerprint}-{attempt}/{n}.{ext}`: no two attempts write the same key.
//! - The record `{prefix}{job_id}/result.json` is written last and only if there is none (`If-None-Match: *`): it is the
//!   proof that the job is done, and names the keys of its images.
//! - While a job's caller is being notified that it failed, `{prefix}{job_id}/failed-….json` says so, see `failed.rs`.
//! - Images that callers send along lie under `inputs/{job_id}/`, what an `Idempotency-Key` stands for under `idempotency/`,
//!   messages that were refused and that no queue keeps under `dead/`.
//! - Inputs (`s3://`, `https://`) go through the cache on disk; [`permitted`] says which ones a job may have.

pub mod cache;
pub mod dead;
mod error;
pub mod failed;
pub mod fetch;
pub mod held_results;
mod input;
pub mod once;
pub mod permitted;
pub mod probe;
pub mod record;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::cache::Cache;
use self::error::{Failure, Kind, Request};
use self::permitted::UnlistedBuckets;
use crate::aws::{self, aws_settings};
use crate::job::notification::Images;
use crate::job::outcome::{JobError, Record, RetryPolicy, StoredImage};
use crate::job::{Job, Output};
use crate::outbound::Outbound;
use crate::setting::{SettingError, check_address};

/// Characters of a fingerprint in the keys of images: enough for a person to see whose they are.
const FINGERPRINT_IN_KEY: usize = 12;

aws_settings! {
    section = "store";
    /// Settings of section `store`.
    #[derive(Debug, Clone, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// Bucket of images and records. Required.
        pub bucket: String,
        /// `{endpoint}/{bucket}/{key}` instead of `{bucket}.{endpoint}/{key}`; most servers that are not AWS need it.
        pub force_path_style: bool,
        /// What image addresses in notifications start with, such as a CDN: `{public_base_url}/{key}`. Without it they are
        /// presigned.
        pub public_base_url: Option<String>,
        /// Seconds that a presigned address works, 1 to 604800; temporary credentials can end it sooner.
        pub presign_seconds: u64,
        /// false: results are written without `If-None-Match`, for servers that do not know it. Safe while one host alone uses the
        /// bucket.
        pub conditional_writes: bool,
        /// Buckets that `s3://` inputs may come from; empty: the results bucket, and see `unlisted_input_buckets`.
        pub input_buckets: Vec<String>,
        /// What becomes of inputs from other buckets where `input_buckets` is empty.
        pub unlisted_input_buckets: UnlistedBuckets,
        /// Whether a job may have the images of other jobs as its inputs.
        pub allow_results_as_inputs: bool,
        /// Bytes of one input file at most.
        pub max_input_bytes: u64,
        /// Bytes of one input image at most.
        pub max_image_bytes: u64,
        /// Milliseconds for one input file at most.
        pub input_timeout_ms: u64,
        /// Milliseconds for one input image at most.
        pub image_timeout_ms: u64,
        /// Bytes a second that an input must come with, on average and from its 20th second on; else it would hold the only handler for
        /// as long as it may take.
        pub min_input_bytes_per_second: u64,
        pub cache: cache::Settings,
        pub held_results: held_results::Settings,
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            region: None,
            endpoint_url: None,
            force_path_style: false,
            access_key_id: None,
            secret_access_key: None,
            public_base_url: None,
            presign_seconds: 7 * 24 * 3600,
            connect_timeout_ms: 3_000,
            attempt_timeout_ms: 30_000,
            operation_timeout_ms: 60_000,
            max_attempts: 4,
            conditional_writes: true,
            input_buckets: Vec::new(),
            unlisted_input_buckets: UnlistedBuckets::Warn,
            allow_results_as_inputs: false,
            max_input_bytes: 2 << 30,
            max_image_bytes: 256 << 20,
            input_timeout_ms: 300_000,
            image_timeout_ms: 60_000,
            min_input_bytes_per_second: 65_536,
            cache: cache::Settings::default(),
            held_results: held_results::Settings::default(),
        }
    }
}

/// The bucket and the way to inputs; clones share connections and the cache.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    settings: Settings,
    outbound: Outbound,
    cache: Cache,
    /// One write at a time where the server knows no condition.
    unconditional: Arc<Mutex<()>>,
}

impl Store {
    /// Builds the client and opens the cache; talks to no server yet, see [`Self::probe`].
    ///
    /// # Errors
    /// Names the setting that is missing or wrong.
    pub async fn connect(settings: &Settings, outbound: Outbound) -> Result<Self, SettingError> {
        if settings.bucket.is_empty() {
            return Err(SettingError::new("store.bucket", "must name the S3 bucket for the images (AWS_STORAGE_BUCKET_NAME)"));
        }
        if !(1..=604_800).contains(&settings.presign_seconds) {
            let problem = format!("must be 1 to 604800 seconds (a week, S3's limit), got {}", settings.presign_seconds);
            return Err(SettingError::new("store.presign_seconds", problem));
        }
        check_address("store.endpoint_url", settings.endpoint_url.as_deref())?;
        check_address("store.public_base_url", settings.public_base_url.as_deref())?;
        let client = client(settings).await?;
        let cache = Cache::open(&settings.cache).map_err(|error| {
            let directory = settings.cache.directory.display();
            SettingError::new("store.cache.directory", format!("{directory} must be a directory to write to ({error})"))
        })?;
        Ok(Self { client, settings: settings.clone(), outbound, cache, unconditional: Arc::default() })
    }

    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.settings.bucket
    }

    /// Asks the server for the bucket, so that wrong credentials are found before the first image is generated.
    ///
    /// # Errors
    /// Says whether the server, the credentials, the permission or the bucket is missing.
    pub async fn probe(&self) -> Result<(), JobError> {
        let list = self.client.list_objects_v2().bucket(&self.settings.bucket).max_keys(1).send();
        list.await.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:ListBucket", "")))
    }

    /// Uploads image `n` (counted from 0) of a job. `attempt`: a name that no other attempt at any job of this id has
    /// ([`attempt_token`]), so that no one writes over the files of another's record.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    #[expect(clippy::too_many_arguments, reason = "each is one property of the one image")]
    pub async fn put_image(
        &self,
        job: &Job,
        attempt: &str,
        n: usize,
        width_px: u32,
        height_px: u32,
        seed: u64,
        file: impl Into<Bytes> + Send,
    ) -> Result<StoredImage, JobError> {
        let file: Bytes = file.into();
        let content_type = job.output.format.content_type();
        let stored = StoredImage {
            bucket: self.settings.bucket.clone(),
            key: image_key(job, attempt, n),
            content_type: content_type.to_owned(),
            width_px,
            height_px,
            bytes: file.len() as u64,
            seed,
            sha256: Some(base16ct::lower::encode_string(&Sha256::digest(&file))),
            invisible_mark: None,
        };
        let put = self.client.put_object().bucket(&stored.bucket).key(&stored.key).content_type(content_type);
        match put.body(ByteStream::from(file)).send().await {
            Ok(put) => self.request("s3:PutObject", &stored.key).of_s3(put.e_tag()).map(|()| stored),
            Err(error) => Err(Failure::new(error).storage(self.request("s3:PutObject", &stored.key))),
        }
    }

    /// Removes images that no record names, as far as that works: what stays is in no one's way.
    pub async fn delete_images(&self, images: &[StoredImage]) {
        for image in images {
            let delete = self.client.delete_object().bucket(&image.bucket).key(&image.key).send();
            if let Err(error) = delete.await.map_err(Failure::new) {
                let error = error.storage(self.request("s3:DeleteObject", &image.key));
                tracing::warn!(key = image.key, %error, "an image that no record names stays in the bucket");
            }
        }
    }

    /// Where the record's images can be seen, in their order: under `public_base_url`, or presigned.
    ///
    /// # Errors
    /// When there are no credentials to sign with.
    pub async fn urls(&self, record: &Record) -> Result<Vec<String>, JobError> {
        let mut urls = Vec::with_capacity(record.images.len());
        for image in &record.images {
            urls.push(self.url_of(image).await?);
        }
        Ok(urls)
    }

    async fn url_of(&self, image: &StoredImage) -> Result<String, JobError> {
        if let Some(base) = &self.settings.public_base_url {
            return Ok(under(base, &image.key));
        }
        let expiry = PresigningConfig::expires_in(Duration::from_secs(self.settings.presign_seconds))
            .map_err(|error| JobError::Internal { problem: format!("presigning failed ({error})") })?;
        let get = self.client.get_object().bucket(&image.bucket).key(&image.key);
        match get.presigned(expiry).await {
            Ok(request) => Ok(request.uri().to_owned()),
            Err(error) => Err(Failure::new(error).storage(self.request("s3:GetObject", &image.key))),
        }
    }

    fn request<'a>(&'a self, action: &'static str, key: &'a str) -> Request<'a> {
        self.request_in(action, &self.settings.bucket, key)
    }

    fn request_in<'a>(&'a self, action: &'static str, bucket: &'a str, key: &'a str) -> Request<'a> {
        Request { action, bucket, key, endpoint: self.settings.endpoint_url.as_deref().unwrap_or_default() }
    }
}

#[async_trait]
impl Images for Store {
    async fn bytes(&self, image: &StoredImage) -> Result<Vec<u8>, JobError> {
        self.object(&image.bucket, &image.key).await
    }
}

impl Store {
    /// So long after its sender died a request may still come to be carried out: none is waited for any longer.
    #[must_use]
    pub fn longest_request(&self) -> Duration {
        Duration::from_millis(self.settings.attempt_timeout_ms)
    }

    async fn object(&self, bucket: &str, key: &str) -> Result<Vec<u8>, JobError> {
        match self.client.get_object().bucket(bucket).key(key).send().await {
            Ok(object) => {
                self.request_in("s3:GetObject", bucket, key).of_s3(object.e_tag())?;
                self.collected(object.body, bucket, key).await
            }
            Err(error) => Err(Failure::new(error).storage(self.request_in("s3:GetObject", bucket, key))),
        }
    }

    /// Whether anything lies there in the results bucket.
    async fn has_object(&self, key: &str) -> Result<bool, JobError> {
        match self.client.get_object().bucket(&self.settings.bucket).key(key).send().await.map_err(Failure::new) {
            Ok(_) => Ok(true),
            Err(failure) if failure.kind == Kind::NoKey => Ok(false),
            Err(failure) => Err(failure.storage(self.request("s3:GetObject", key))),
        }
    }

    /// The SDK bounds the time until the answer's head, but not until its end.
    async fn collected(&self, body: ByteStream, bucket: &str, key: &str) -> Result<Vec<u8>, JobError> {
        let limit = Duration::from_millis(self.settings.operation_timeout_ms);
        let broken = |problem: String, cause| JobError::Storage {
            problem: format!("s3://{bucket}/{key} {problem}"),
            retry_policy: RetryPolicy::Wait,
            cause,
        };
        match tokio::time::timeout(limit, body.collect()).await {
            Ok(Ok(bytes)) => Ok(bytes.to_vec()),
            Ok(Err(error)) => Err(broken(format!("broke off ({error})"), Some(error.into()))),
            Err(_) => Err(broken(format!("was not complete after {} ms", limit.as_millis()), None)),
        }
    }
}

/// The address of an object where the bucket is public.
fn under(base: &str, key: &str) -> String {
    format!("{}/{key}", base.trim_end_matches('/'))
}

/// A name for one attempt at a job.
#[must_use]
pub fn attempt_token() -> String {
    // The first half of a v7 id is mostly time, the second is random.
    Uuid::now_v7().simple().to_string()[20..].to_owned()
}

/// `{prefix}{job_id}/{12 of the fingerprint}-{attempt}/{n}.{extension}`
fn image_key(job: &Job, attempt: &str, n: usize) -> String {
    let Job { id, output: Output { prefix, format, .. }, fingerprint, .. } = job;
    let request = &fingerprint[..fingerprint.len().min(FINGERPRINT_IN_KEY)];
    format!("{prefix}{id}/{request}-{attempt}/{n}.{}", format.extension())
}

pub(crate) async fn client(settings: &Settings) -> Result<Client, SettingError> {
    let shared = settings.access().load().await?;
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(settings.force_path_style)
        .retry_partition(aws::retry_partition())
        .build();
    Ok(Client::from_conf(config))
}
