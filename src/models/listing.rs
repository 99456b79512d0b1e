//! What every place that files are read from says of them: which there are, and the bytes of one.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::file::{Checksum, FilePath};

/// A file that is there.
pub(super) struct Listed {
    pub(super) path: FilePath,
    pub(super) bytes: Option<u64>,
    pub(super) checksum: Option<Checksum>,
}

pub(super) struct Listing {
    /// What a moving revision is at the moment.
    pub(super) commit: Option<String>,
    pub(super) files: Vec<Listed>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// The bytes of a file from `from` on: not where they were asked for, if the place cannot begin in the middle.
pub(super) struct Content {
    pub(super) from: u64,
    /// Of what comes.
    pub(super) bytes: Option<u64>,
    pub(super) chunks: Chunks,
}

impl Content {
    pub(super) fn nothing(from: u64) -> Self {
        Self { from, bytes: Some(0), chunks: Box::pin(stream::empty()) }
    }
}
