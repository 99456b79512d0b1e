//! Writes a loaded checkpoint as a directory with one file of weights, which is read without being renamed or converted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use candle_core::Tensor;
use safetensors::View as _;
use safetensors::tensor::{Metadata, TensorInfo};

use super::StableDiffusion;
use crate::EngineError;
use crate::tensor_file::{LENGTH_BYTES, PACKED};
use crate::tensor_table::written_table;
use crate::weights::joint::is_joint;

/// The values begin at a multiple of it: a page, and a block of a disk.
pub const ALIGNMENT: usize = 4096;
/// The name that the weights have until they are whole.
const PART: &str = ".atelier.safetensors.part";
const INDEX: &str = "model_index.json";

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub tensors: usize,
    /// Of the file of weights.
    pub bytes: u64,
}

impl StableDiffusion {
    /// Writes everything that is needed to load this checkpoint again into the directory `to`: its small files, and all weights, in the format
    /// they were loaded in, in one file. That has its name when it is whole and on the disk, so what is broken off is never loaded.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when `to` has a packed checkpoint already, is the checkpoint's own directory, or cannot be written.
    pub fn pack(&self, to: &Path) -> Result<Packed, EngineError> {
        let from = &self.checkpoint.directory;
        let wrong = |problem: String| EngineError::Checkpoint { path: to.to_owned(), problem };
        let failed = |error: io::Error| wrong(format!("cannot be written: {error}"));
        fs::create_dir_all(to).map_err(failed)?;
        if fs::canonicalize(from).ok() == fs::canonicalize(to).ok() {
            return Err(wrong("is the checkpoint itself, which stays as it is; pack it into another directory".into()));
        }
        if to.join(PACKED).exists() {
            return Err(wrong(format!("has {PACKED} already; remove the directory, or pack into another one")));
        }
        let part = OpenOptions::new().create(true).truncate(false).write(true).open(to.join(PART)).map_err(failed)?;
        part.try_lock().map_err(|_| wrong("is being packed into by someone else; wait for that, or stop it".into()))?;
        let packed = copy_small_files(from, to, &self.checkpoint.directories())
            .and_then(|()| self.write_weights(&part))
            .and_then(|packed| {
                fs::rename(to.join(PART), to.join(PACKED))?;
                File::open(to)?.sync_all()?;
                Ok(packed)
            });
        packed.map_err(|error| {
            // A second failure is not reported.
            let _ = fs::remove_file(to.join(PART));
            failed(error)
        })
    }

    fn write_weights(&self, mut file: &File) -> io::Result<Packed> {
        let weights = self.adapters.weights().tensors();
        let components = self.checkpoint.components();
        let mut tensors: Vec<(&String, &Tensor)> = weights.iter().filter(|(name, _)| !is_joint(name)).collect();
        tensors.sort_by_key(|(name, _)| {
            (components.iter().position(|component| name.split('.').next() == Some(component)), *name)
        });
        let header = header(&tensors).map_err(io::Error::other)?;
        file.set_len(0)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in &tensors {
            file.write_all(&tensor.data())?;
        }
        file.sync_all()?;
        Ok(Packed { tensors: tensors.len(), bytes: file.metadata()?.len() })
    }
}

/// The table of these tensors, filled up with spaces as the format allows.
fn header(tensors: &[(&String, &Tensor)]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor)| {
        let begin = end;
        end += tensor.data_len();
        let info = TensorInfo { dtype: tensor.dtype(), shape: tensor.dims().to_vec(), data_offsets: (begin, end) };
        ((*name).clone(), info)
    });
    let mut header = written_table(&Metadata::new(None, infos.collect())?)?;
    let whole = (LENGTH_BYTES + header.len()).next_multiple_of(ALIGNMENT) - LENGTH_BYTES;
    header.resize(whole, b' ');
    Ok(header)
}

/// Settings and vocabularies, not the weights nor the lists of their shards.
fn copy_small_files(from: &Path, to: &Path, directories: &[&str]) -> io::Result<()> {
    copy(&from.join(INDEX), &to.join(INDEX))?;
    for directory in directories {
        fs::create_dir_all(to.join(directory))?;
        for entry in fs::read_dir(from.join(directory))? {
            let file = entry?.path();
            let is_small = file.extension().is_some_and(|extension| extension == "json" || extension == "txt");
            let name = file.file_name().unwrap_or_default();
            if is_small && !name.to_string_lossy().contains(".safetensors.index") {
                copy(&file, &to.join(directory).join(name))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}
