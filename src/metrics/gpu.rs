//! The GPUs of this machine as NVML sees them, looked at once a second from a thread of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// One look at one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its index, or `none` where there is no GPU.
    pub name: String,
    pub memory_used_bytes: u64,
    pub utilization_percent: u32,
}

/// What was seen last; clones see the same.
#[derive(Clone)]
pub struct Gpus {
    last: Arc<Mutex<Vec<Gpu>>>,
}

impl Gpus {
    /// For a machine without one.
    #[must_use]
    pub fn none() -> Self {
        let none = Gpu { name: "none".into(), memory_used_bytes: 0, utilization_percent: 0 };
        Self { last: Arc::new(Mutex::new(vec![none])) }
    }

    /// Looks from now on, where there is a library of NVIDIA's to look with. Loading it takes seconds on some machines, so all
    /// of it is the thread's.
    #[must_use]
    pub fn watch() -> Self {
        let gpus = Self::none();
        let last = gpus.last.clone();
        let watching = thread::Builder::new().name("nvml".into()).spawn(move || {
            let Ok(nvml) = Nvml::init() else { return };
            loop {
                if let Some(seen) = query(&nvml) {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = seen;
                }
                thread::sleep(Duration::from_secs(1));
            }
        });
        if let Err(error) = watching {
            tracing::warn!(%error, "the GPUs are not watched");
        }
        gpus
    }

    #[must_use]
    pub fn last(&self) -> Vec<Gpu> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many GPUs there are; 0 where NVML says nothing.
#[must_use]
pub fn count() -> usize {
    Nvml::init().and_then(|nvml| nvml.device_count()).map_or(0, |count| count as usize)
}

/// What NVML says of a machine and its GPUs, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub driver: String,
    /// The newest CUDA version that the driver knows, 13.0 as (13, 0).
    pub cuda: (u32, u32),
    pub cards: Vec<Card>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// As its maker calls it.
    pub name: String,
    pub memory_bytes: u64,
    pub free_bytes: u64,
    /// Compute capability, 8.0 as (8, 0).
    pub compute: (u32, u32),
}

/// Asks NVML; blocks, for seconds on some machines.
///
/// # Errors
/// NVML's own words, where its library is missing or a GPU does not answer.
pub fn inspect() -> Result<Machine, String> {
    machine().map_err(|error| error.to_string())
}

fn machine() -> Result<Machine, NvmlError> {
    let nvml = Nvml::init()?;
    let mut cards = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        let memory = device.memory_info()?;
        let compute = device.cuda_compute_capability()?;
        let compute = (compute.major.unsigned_abs(), compute.minor.unsigned_abs());
        cards.push(Card { name: device.name()?, memory_bytes: memory.total, free_bytes: memory.free, compute });
    }
    let cuda = nvml.sys_cuda_driver_version()?.unsigned_abs();
    Ok(Machine { driver: nvml.sys_driver_version()?, cuda: (cuda / 1000, cuda % 1000 / 10), cards })
}

fn query(nvml: &Nvml) -> Option<Vec<Gpu>> {
    let count = nvml.device_count().ok().filter(|count| *count > 0)?;
    let gpus = (0..count).filter_map(|index| {
        let device = nvml.device_by_index(index).ok()?;
        let memory_used_bytes = device.memory_info().ok()?.used;
        // A slice of a GPU (MIG) has memory, but no utilisation of its own.
        let utilization_percent = device.utilization_rates().map_or(0, |rates| rates.gpu);
        Some(Gpu { name: index.to_string(), memory_used_bytes, utilization_percent })
    });
    Some(gpus.collect())
}
