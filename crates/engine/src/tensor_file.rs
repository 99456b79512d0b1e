//! A safetensors file, read tensor by tensor: what a model has in it need not be in memory all at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use super::EngineError;
use super::gguf_file::GgufFile;
use super::tensor_table::{MAX_TENSORS, has_entries_up_to, tensor_table};

/// Bytes of the header's length, at the beginning of a file.
pub(super) const LENGTH_BYTES: usize = 8;
/// The table of the largest model has 1 MB, and trainers write a few MB of notes next to it.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// What [`not_safetensors`] looks at.
const BEGINNING_BYTES: usize = 256;

/// The one file of a packed checkpoint (`atelier models pack`), which has all tensors under the engine's own names.
pub const PACKED: &str = "atelier.safetensors";

/// Looks at header and length alone.
///
/// # Errors
/// When it is no whole safetensors file, or where it is called so no whole GGUF file.
pub fn check(path: &Path) -> Result<(), EngineError> {
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return GgufFile::open(path).map(drop);
    }
    TensorFile::open(path).map(drop)
}

pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    table: Metadata,
    /// Where the values begin.
    start: u64,
}

impl TensorFile {
    /// Reads the table of what is in the file.
    ///
    /// # Errors
    /// When it is no whole safetensors file.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let unreadable = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut beginning = vec![0; bytes.min(BEGINNING_BYTES as u64) as usize];
        file.read_exact_at(&mut beginning, 0).map_err(unreadable)?;
        let broken = |error: &SafeTensorError| wrong(not_safetensors(&beginning, error));
        let Some(length) = beginning.first_chunk::<LENGTH_BYTES>() else {
            return Err(broken(&SafeTensorError::HeaderTooSmall));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes.saturating_add(LENGTH_BYTES as u64) > bytes {
            return Err(broken(&SafeTensorError::InvalidHeaderLength));
        }
        if header_bytes > MAX_HEADER_BYTES {
            let allowed = format!("{MAX_HEADER_BYTES} are allowed; remove the metadata that a trainer left in it");
            return Err(wrong(format!("has a header of {header_bytes} bytes, {allowed}")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, LENGTH_BYTES as u64).map_err(unreadable)?;
        // Counted first: the table of a million tensors takes a gigabyte and many seconds.
        if !has_entries_up_to(&header, MAX_TENSORS) {
            return Err(wrong(format!("has more than {MAX_TENSORS} tensors, which no model or adapter has")));
        }
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

    /// An entry of the header that is no tensor, such as the notes of a trainer.
    pub(super) fn note(&self, key: &str) -> Option<&str> {
        self.table.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Names and formats of all tensors, in the order in which they lie in the file.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Dtype)> {
        let names = self.table.offset_keys().into_iter();
        names.filter_map(|name| self.info(&name).map(|info| info.dtype).map(|dtype| (name, dtype)))
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.table.info(name)
    }

    /// Fills `bytes` with a tensor's own, from its byte `from` on. May be called from several threads at once.
    ///
    /// # Errors
    /// When they cannot be read, or the file has become shorter.
    pub(super) fn read_at(&self, info: &TensorInfo, from: usize, bytes: &mut [u8]) -> Result<(), EngineError> {
        let place = self.start + (info.data_offsets.0 + from) as u64;
        self.file
            .read_exact_at(bytes, place)
            .map_err(|error| EngineError::Checkpoint { path: self.path.clone(), problem: error.to_string() })
    }

    /// One tensor in the format it is kept in.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is in a format that candle has not.
    pub(super) fn load(&self, name: &str, device: &Device) -> Result<Tensor, EngineError> {
        let info = self
            .info(name)
            .ok_or_else(|| EngineError::Checkpoint { path: self.path.clone(), problem: format!("{name} is missing") })?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.read_at(info, 0, &mut bytes)?;
        let dtype = DType::try_from(info.dtype)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, device)?)
    }
}

/// Why bytes are no safetensors file, and what to do. `beginning`: the file's first bytes, [`BEGINNING_BYTES`] of them if there are so many.
fn not_safetensors(beginning: &[u8], error: &SafeTensorError) -> String {
    const ZIP: &[u8] = b"PK";
    const GGUF: &[u8] = b"GGUF";
    const PICKLE_PROTOCOL: u8 = 0x80;
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    let text = beginning.trim_ascii_start();
    let starts_with = |mark: &[u8]| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark));
    if beginning.starts_with(ZIP) || beginning.first() == Some(&PICKLE_PROTOCOL) {
        "is a pickle, which can run code when it is read; save it as .safetensors".into()
    } else if beginning.starts_with(GGUF) {
        "is GGUF, which is read of Z-Image and FLUX.1 alone (weights and text_encoder in the manifest); take the same model's .safetensors file, \
         in bf16, f16 or f8 without scales"
            .into()
    } else if beginning.starts_with(LFS) {
        "is a Git LFS pointer, which only names the file; run git lfs pull, or use the URL that downloads the file itself"
            .into()
    } else if starts_with(b"<!doctype html") || starts_with(b"<html") || starts_with(b"<head") || starts_with(b"<!--") {
        "is a web page; use the URL that downloads the file itself (a page of it, or of a login, is none)".into()
    } else if starts_with(b"<?xml") || starts_with(b"<error") {
        "is an XML document, probably a server's error; check that the URL downloads the file itself".into()
    } else if starts_with(b"{") || starts_with(b"[") {
        "is JSON text, probably a server's error; check that the URL downloads the file itself".into()
    } else {
        format!("is not a whole safetensors file ({error}); upload it again")
    }
}
