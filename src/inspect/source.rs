//! Where the image lies: on this machine, or in a bucket.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use aws_sdk_s3::Client;

use crate::aws::error::detail;
use crate::config::{Config, Environment};
use crate::store;

#[derive(Debug, Clone)]
pub(super) enum Source {
    File(PathBuf),
    Object { bucket: String, key: String },
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let object = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        Ok(match object {
            Some((bucket, key)) => Self::Object { bucket: bucket.to_owned(), key: key.to_owned() },
            None => Self::File(text.into()),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Object { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

impl Source {
    pub(super) async fn read(&self, config: Option<&Path>, environment: &Environment) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => std::fs::read(path).with_context(|| format!("{self} cannot be read")),
            Self::Object { bucket, key } => {
                let settings = Config::load(config, environment)?.store;
                object(&store::client(&settings).await?, bucket, key).await
            }
        }
    }
}

/// # Errors
/// When it is not there, may not be read, or breaks off.
pub(super) async fn object(client: &Client, bucket: &str, key: &str) -> anyhow::Result<Vec<u8>> {
    let object = client.get_object().bucket(bucket).key(key).send().await;
    let object = object.map_err(|error| anyhow::anyhow!("s3://{bucket}/{key} cannot be read: {}", detail(&error)))?;
    let body = object.body.collect().await.with_context(|| format!("s3://{bucket}/{key} broke off"))?;
    Ok(body.to_vec())
}
