//! What the benchmarks' own sides share: how they are started, how they time, and the files that stages are compared by.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};

/// `DIRECTORY [NAME=VALUE]...`: a checkpoint's directory, then whatever differs from the default.
pub(crate) struct Arguments {
    pub(crate) directory: PathBuf,
    named: HashMap<String, String>,
}

impl Arguments {
    /// # Errors
    /// When there is no directory, or an argument that is not among `known`.
    pub(crate) fn read(known: &[&str]) -> Result<Self> {
        // `cargo bench` adds an argument of its own.
        let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
        let directory = given.next().context("give a checkpoint's directory")?.into();
        let mut named = HashMap::new();
        for argument in given {
            match argument.split_once('=') {
                Some((name, value)) if known.contains(&name) => named.insert(name.to_owned(), value.to_owned()),
                _ => bail!("{argument}: known are {}", known.join("=, ") + "="),
            };
        }
        Ok(Self { directory, named })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// `dtype=f32|f16|bf16`, else `default`.
    ///
    /// # Errors
    /// When it says anything else.
    pub(crate) fn dtype(&self, defaults: DType) -> Result<DType> {
        match self.get("dtype") {
            None => Ok(defaults),
            Some("f32") => Ok(DType::F32),
            Some("f16") => Ok(DType::F16),
            Some("bf16") => Ok(DType::BF16),
            Some(other) => bail!("dtype={other}: known are f32, f16 and bf16"),
        }
    }
}

/// Says that work can come, and in what it will be done.
///
/// # Errors
/// When no one listens.
pub(crate) fn ready(dtype: DType) -> Result<()> {
    let attention = if cfg!(feature = "flash-attn") { ", flash attention" } else { "" };
    Ok(writeln!(stdout(), "ready {}{attention}", dtype.as_str())?)
}

/// Seconds of `work`, from an idle device to an idle device.
///
/// # Errors
/// Those of `work`.
pub(crate) fn timed<R>(device: &Device, work: impl FnOnce() -> Result<R>) -> Result<f64> {
    device.synchronize()?;
    let start = Instant::now();
    work()?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// What a stage is given: a safetensors file.
pub(crate) struct Inputs {
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Inputs {
    /// # Errors
    /// When it is no safetensors file.
    pub(crate) fn read(path: &str, device: &Device) -> Result<Self> {
        Ok(Self { tensors: candle_core::safetensors::load(path, &Device::Cpu)?, device: device.clone() })
    }

    /// On the CPU.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("the stage wants {name}"))
    }

    /// In f32 on the device.
    ///
    /// # Errors
    /// When it is not there, or no values.
    pub(crate) fn values(&self, name: &str) -> Result<Tensor> {
        Ok(self.get(name)?.to_dtype(DType::F32)?.to_device(&self.device)?)
    }

    /// f64, shape (1,).
    ///
    /// # Errors
    /// When it is not there, or of another shape or format.
    pub(crate) fn number(&self, name: &str) -> Result<f64> {
        self.get(name)?.to_vec1::<f64>()?.first().copied().context("one number")
    }

    /// UTF-8 as u8, shape (bytes,).
    ///
    /// # Errors
    /// When it is not there, or no text.
    pub(crate) fn text(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8(self.get(name)?.to_vec1::<u8>()?)?)
    }
}

/// Writes what a stage gave, in f32.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(path: &str, outputs: &[(&str, &Tensor)]) -> Result<()> {
    let described = outputs.iter().map(|(name, tensor)| {
        let tensor = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        Ok(((*name).to_owned(), tensor))
    });
    let tensors = described.collect::<Result<HashMap<_, _>>>()?;
    Ok(candle_core::safetensors::save(&tensors, Path::new(path))?)
}
