//! A safetensors file, read tensor by tensor: what a model has in it need not be in memory all at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use super::EngineError;
use super::checkpoint::tensor_table;
use super::weights::not_safetensors;

/// Bytes of the header's length, at the beginning of a file.
const LENGTH_BYTES: usize = 8;
/// As the library that writes such files allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Looks at header and length alone.
///
/// # Errors
/// When it is no whole safetensors file.
pub fn check(path: &Path) -> Result<(), EngineError> {
    TensorFile::open(path).map(drop)
}

pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    table: Metadata,
    /// Where the numbers begin.
    start: u64,
}

impl TensorFile {
    /// Reads the table of what is in the file.
    ///
    /// # Errors
    /// When it is no whole safetensors file.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let unreadable = |error: std::io::Error| wrong(error.to_string());
        let file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut length = [0; LENGTH_BYTES];
        let beginning = bytes.min(LENGTH_BYTES as u64) as usize;
        file.read_exact_at(&mut length[..beginning], 0).map_err(unreadable)?;
        let broken = |error: &SafeTensorError| wrong(not_safetensors(&length[..beginning], error));
        if beginning < LENGTH_BYTES {
            return Err(broken(&SafeTensorError::HeaderTooSmall));
        }
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || LENGTH_BYTES as u64 + header_bytes > bytes {
            return Err(broken(&SafeTensorError::InvalidHeaderLength));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, LENGTH_BYTES as u64).map_err(unreadable)?;
        let table = tensor_table(&header).map_err(|error| broken(&error))?;
        let start = LENGTH_BYTES as u64 + header_bytes;
        if start + table.data_len() as u64 != bytes {
            return Err(broken(&SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { path: path.to_owned(), file, table, start })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names and formats of all tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Dtype)> {
        self.table.tensors().into_iter().map(|(name, info)| (name, info.dtype))
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.table.info(name)
    }

    /// One tensor in the format it is kept in.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is in a format that candle has not.
    pub(super) fn load(&self, name: &str, device: &Device) -> Result<Tensor, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: self.path.clone(), problem };
        let info = self.info(name).ok_or_else(|| wrong(format!("{name} is missing")))?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file.read_exact_at(&mut bytes, self.start + from as u64).map_err(|error| wrong(error.to_string()))?;
        let dtype = DType::try_from(info.dtype)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, device)?)
    }
}
