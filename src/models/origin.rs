//! A place that files are read from: listed once, then opened one by one at any byte.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;
use futures_util::stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::ModelError;
use super::file::FilePath;
use super::hub::{self, Hub};
use super::listing::{Content, Listed, Listing};
use super::source::Place;
use crate::aws::error::{Reach, detail, reach};
use crate::store;

/// How much of a local file is read at once.
const PIECE_BYTES: usize = 1 << 20;
/// Directories in directories; deeper there are only links in circles.
const DEEPEST: usize = 4;

/// An open place.
pub enum Origin {
    Hub(Hub),
    S3 { client: Client, bucket: String, prefix: String },
    Directory(PathBuf),
}

impl Origin {
    /// `base`: what a directory is relative to.
    ///
    /// # Errors
    /// When a setting of the place cannot be used.
    pub async fn new(place: &Place, base: &Path, store: &store::Settings, hub: &hub::Settings) -> Result<Self, ModelError> {
        Ok(match place {
            Place::Hub { repository, revision } => Self::Hub(Hub::new(hub, repository, revision)?),
            Place::S3 { bucket, prefix } => {
                Self::S3 { client: store::client(store).await?, bucket: bucket.clone(), prefix: prefix.clone() }
            }
            Place::Directory(directory) => Self::Directory(base.join(directory)),
        })
    }

    pub(super) async fn list(&self) -> Result<Listing, ModelError> {
        match self {
            Self::Hub(hub) => hub.list().await,
            Self::S3 { client, bucket, prefix } => list_bucket(client, bucket, prefix).await,
            Self::Directory(directory) => {
                let mut files = Vec::new();
                collect(directory, "", DEEPEST, &mut files).map_err(|error| directory_error(directory, &error))?;
                Ok(Listing { commit: None, files })
            }
        }
    }

    pub(super) async fn open(&self, path: &FilePath, commit: Option<&str>, from: u64) -> Result<Content, ModelError> {
        match self {
            Self::Hub(hub) => hub.open(path, commit, from).await,
            Self::S3 { client, bucket, prefix } => open_object(client, bucket, prefix, path, from).await,
            Self::Directory(directory) => {
                open_file(&path.under(directory), from).await.map_err(|error| directory_error(&path.under(directory), &error))
            }
        }
    }
}

fn directory_error(path: &Path, error: &std::io::Error) -> ModelError {
    ModelError::Place { place: path.display().to_string(), problem: format!("cannot be read: {error}") }
}

/// Files below `directory` by their content: links are followed, and those that lead nowhere are left out.
fn collect(directory: &Path, inside: &str, depth: usize, files: &mut Vec<Listed>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        let Ok(about) = std::fs::metadata(entry.path()) else { continue };
        if about.is_dir() && depth > 0 {
            collect(&entry.path(), &path, depth - 1, files)?;
        } else if about.is_file()
            && let Ok(path) = FilePath::new(&path)
        {
            files.push(Listed { path, bytes: Some(about.len()), checksum: None });
        }
    }
    Ok(())
}

async fn open_file(path: &Path, from: u64) -> std::io::Result<Content> {
    let mut file = File::open(path).await?;
    let bytes = file.metadata().await?.len().saturating_sub(from);
    file.seek(std::io::SeekFrom::Start(from)).await?;
    let chunks = stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let count = file.read(&mut piece).await.map_err(|error| error.to_string())?;
        piece.truncate(count);
        Ok((count > 0).then(|| (Bytes::from(piece), file)))
    });
    Ok(Content { from, bytes: Some(bytes), chunks: Box::pin(chunks) })
}

async fn list_bucket(client: &Client, bucket: &str, prefix: &str) -> Result<Listing, ModelError> {
    let mut pages = client.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
    let mut files = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| s3_error(bucket, prefix, &error))?;
        for object in page.contents() {
            let name = object.key().and_then(|key| key.strip_prefix(prefix));
            if let Some(path) = name.and_then(|name| FilePath::new(name).ok()) {
                let bytes = object.size().and_then(|size| u64::try_from(size).ok());
                files.push(Listed { path, bytes, checksum: None });
            }
        }
    }
    Ok(Listing { commit: None, files })
}

async fn open_object(client: &Client, bucket: &str, prefix: &str, path: &FilePath, from: u64) -> Result<Content, ModelError> {
    let range = (from > 0).then(|| format!("bytes={from}-"));
    let got = client.get_object().bucket(bucket).key(format!("{prefix}{path}")).set_range(range.clone()).send().await;
    let got = match got {
        Err(error) if error.code() == Some("InvalidRange") => return Ok(Content::nothing(from)),
        got => got.map_err(|error| s3_error(bucket, prefix, &error))?,
    };
    let from = if got.content_range().is_some() { from } else { 0 };
    let bytes = got.content_length().and_then(|length| u64::try_from(length).ok());
    let chunks = stream::unfold(got.body, |mut body| async move {
        let piece = body.next().await?;
        Some((piece.map_err(|error| error.to_string()), body))
    });
    Ok(Content { from, bytes, chunks: Box::pin(chunks) })
}

fn s3_error<E: StdError + ProvideErrorMetadata + 'static>(
    bucket: &str,
    prefix: &str,
    error: &SdkError<E, HttpResponse>,
) -> ModelError {
    let place = format!("s3://{bucket}/{prefix}");
    let problem = match (reach(error), error.code()) {
        (_, Some("NoSuchBucket")) => format!("cannot be read: there is no bucket {bucket:?}"),
        (_, Some("AccessDenied")) => "cannot be read: the credentials lack s3:ListBucket or s3:GetObject on it".to_owned(),
        (Reach::Answered(status), _) if status < 500 => format!("cannot be read: {}", detail(error)),
        (Reach::NoCredentials, _) => format!("cannot be read: no AWS credentials were found ({})", detail(error)),
        _ => return ModelError::Unreachable { place, problem: detail(error) },
    };
    ModelError::Place { place, problem }
}
