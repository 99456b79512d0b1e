//! Which engine a manifest asks for, and how it is loaded.

use candle_core::DType;

use crate::config::manifest::{Family, Manifest, ModeWeights};
use crate::config::{Config, Dtype};
use crate::engine::qwen::Variant;
use crate::engine::qwen::engine::{Settings, TryOnEngine};
use crate::engine::qwen::precision::Precision;
use crate::engine::qwen::sizes::Areas;
use crate::engine::sd::StableDiffusion;
use crate::engine::thread::EngineThread;
use crate::engine::{Engine, EngineError, LoraFile, device};
use crate::job::task::tryon::Mode;

/// What loads the engine on a thread of its own, warms it and waits until it is ready; to be called where that may take long.
pub(super) fn start(
    config: &Config,
    manifest: &Manifest,
) -> impl FnOnce() -> Result<EngineThread, EngineError> + Send + 'static {
    let warm_up = config.workflow.advanced.warmup_on_startup;
    let budget = config.engine.memory_budget_mib.map(|mib| mib << 20);
    let dtype = dtype(config.engine.dtype);
    let settings = tryon(config, manifest, budget);
    let manifest = manifest.clone();
    move || match manifest.family {
        Family::StableDiffusion1 => EngineThread::start(move || {
            let device = device::open()?;
            let dtype = dtype.unwrap_or_else(|| device::usual_dtype(&device));
            device::check_dtype(dtype, &device)?;
            let engine = match &manifest.weights {
                None => StableDiffusion::load(&manifest.checkpoint, dtype, device)?,
                Some(file) => StableDiffusion::load_single_file(&manifest.checkpoint, file, dtype, device)?,
            };
            warmed(engine.with_prompts(manifest.prompt).with_memory_budget(budget), warm_up)
        }),
        Family::QwenImageEdit => EngineThread::start(move || {
            let device = device::open()?;
            let precision = Precision::of(&device);
            let precision = Precision { compute: dtype.unwrap_or(precision.compute), ..precision };
            device::check_dtype(precision.compute, &device)?;
            warmed(TryOnEngine::load(&manifest.checkpoint, settings, precision, device)?, warm_up)
        }),
    }
}

fn warmed<E: Engine>(mut engine: E, warm_up: bool) -> Result<E, EngineError> {
    if warm_up {
        engine.warm_up()?;
    }
    Ok(engine)
}

/// None: what is usual on the device.
fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::Bf16 => Some(DType::BF16),
    }
}

fn tryon(config: &Config, manifest: &Manifest, memory_budget: Option<u64>) -> Settings {
    let usual = Areas::default();
    let variant = |mode: Mode| Some((mode, variant(manifest.modes.of(mode)?, mode)));
    Settings {
        modes: config.model.modes().into_iter().filter_map(variant).collect(),
        areas: Areas {
            reference_px: manifest.reference_px.unwrap_or(usual.reference_px),
            condition_px: manifest.condition_px.unwrap_or(usual.condition_px),
        },
        memory_budget,
        forget_between_jobs: config.workflow.advanced.clear_cache_between_jobs,
    }
}

fn variant(weights: &ModeWeights, mode: Mode) -> Variant {
    Variant {
        file: weights.transformer.clone(),
        loras: weights.loras.iter().map(|lora| LoraFile { path: lora.file.clone(), scale: lora.scale }).collect(),
        distilled: weights.is_distilled(mode),
    }
}
