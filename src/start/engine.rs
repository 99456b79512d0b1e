//! Which engine a manifest asks for, and how it is loaded.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};

use super::family;
use super::phases::{Announcing, Phases};
use super::{safety, segmenter, upscalers};
use crate::config::manifest::{self, Family, Manifest, ModeLora, ModeWeights};
use crate::config::{Config, Dtype};
use crate::job::task::prompt::PromptSyntax;
use crate::job::task::tryon::Mode;
use atelier_engine::classifier::Classifier;
use atelier_engine::flow;
use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::flux2::Flux2;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::loading::Loading;
use atelier_engine::lora::alphas::needs_config;
use atelier_engine::qwen::Variant;
use atelier_engine::qwen::checkpoint::Pipeline;
use atelier_engine::qwen::engine::{QwenEngine, Settings};
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::sizes::Areas;
use atelier_engine::schedule::config::TimestepSpacing;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::{self, Defaults};
use atelier_engine::segmenter::Segmenter;
use atelier_engine::thread::{Companions, EngineThread};
use atelier_engine::upscaler::Upscaler;
use atelier_engine::{AlphaSource, Engine, EngineError, LoraFile, device};

/// What loads the engine on a thread of its own, warms it and waits until it is ready; to be called where that may take long.
pub(super) fn start(
    config: &Config,
    manifest: &Manifest,
) -> impl FnOnce() -> Result<(EngineThread, Phases), EngineError> + Send + 'static {
    let warm_up = config.workflow.advanced.warmup_on_startup;
    let budget = config.engine.memory_budget_mib.map(|mib| mib.saturating_mul(1 << 20));
    let graphs = config.engine.cuda_graphs;
    let dtype = dtype(config.engine.dtype);
    let settings = qwen(config, manifest, budget);
    let checker = safety::loaded_checker(&config.safety, manifest).map(|checker| checker.directory.clone());
    let upscalers = manifest.upscalers.iter().map(|upscaler| (upscaler.name.as_str().to_owned(), upscaler.weights.clone()));
    let segmenter = manifest.segmenter.as_ref().map(|segmenter| segmenter.directory.clone());
    let aside = Aside { warm_up, checker, upscalers: upscalers.collect(), segmenter };
    let manifest = manifest.clone();
    move || {
        upscalers::check_files(&manifest)?;
        segmenter::check_files(&manifest)?;
        match manifest.family {
            Family::StableDiffusion1 | Family::StableDiffusionXl => started(aside, move |device| {
                let dtype = dtype.unwrap_or_else(|| device::default_dtype(&device));
                device::check_dtype(dtype, &device)?;
                let settings =
                    settings::Settings { memory_budget: budget, graphs, ..stable_diffusion(&manifest, dtype, device)? };
                let engine = StableDiffusion::load(&settings)?;
                let loading = engine.loading();
                Ok((engine, loading))
            }),
            Family::QwenImageEdit | Family::QwenImage => started(aside, move |device| {
                let precision = Precision::of(&device);
                let precision = Precision { compute: dtype.unwrap_or(precision.compute), ..precision };
                device::check_dtype(precision.compute, &device)?;
                timed(|| QwenEngine::load(&manifest.checkpoint, settings, precision, device))
            }),
            Family::ZImage => started(aside, move |device| {
                let settings = flow(&manifest, dtype, (budget, graphs), &device)?;
                timed(|| FlowEngine::<ZImage>::load(&manifest.checkpoint, settings, device))
            }),
            Family::Flux => started(aside, move |device| {
                let settings = flow(&manifest, dtype, (budget, graphs), &device)?;
                timed(|| FlowEngine::<Flux>::load(&manifest.checkpoint, settings, device))
            }),
            Family::Flux2 => started(aside, move |device| {
                let settings = flow(&manifest, dtype, (budget, graphs), &device)?;
                timed(|| FlowEngine::<Flux2>::load(&manifest.checkpoint, settings, device))
            }),
        }
    }
}

/// An engine whose modules are built while their tensors are read.
fn timed<E>(load: impl FnOnce() -> Result<E, EngineError>) -> Result<(E, Loading), EngineError> {
    let began = Instant::now();
    let engine = load()?;
    Ok((engine, Loading { read: began.elapsed(), build: Duration::ZERO }))
}

/// How a flow without modes is loaded.
fn flow(
    manifest: &Manifest,
    dtype: Option<DType>,
    (memory_budget, graphs): (Option<u64>, bool),
    device: &Device,
) -> Result<flow::engine::Settings, EngineError> {
    let dtype = dtype.unwrap_or(Precision::of(device).compute);
    device::check_dtype(dtype, device)?;
    let defaults = &manifest.defaults;
    Ok(flow::engine::Settings {
        transformer: manifest.weights.clone(),
        text_encoder: manifest.text_encoder.clone(),
        dtype,
        width_px: defaults.width.get(),
        height_px: defaults.height.get(),
        memory_budget,
        graphs,
    })
}

/// How the checkpoint that a manifest names is loaded, wherever its weights lie.
///
/// # Errors
/// When the checkpoint's settings cannot be read, or are another family's.
pub(super) fn stable_diffusion(manifest: &Manifest, dtype: DType, device: Device) -> Result<settings::Settings, EngineError> {
    family::check(manifest)?;
    let defaults = &manifest.defaults;
    Ok(settings::Settings {
        single_file: manifest.weights.clone(),
        controlnets: manifest.controlnets.iter().map(family::controlnet).collect(),
        ip_adapters: manifest.ip_adapters.iter().map(family::ip_adapter).collect(),
        timestep_spacing: manifest.timestep_spacing.map(|spacing| match spacing {
            manifest::TimestepSpacing::Linspace => TimestepSpacing::Linspace,
            manifest::TimestepSpacing::Leading => TimestepSpacing::Leading,
            manifest::TimestepSpacing::Trailing => TimestepSpacing::Trailing,
        }),
        prompts: match manifest.prompt {
            PromptSyntax::Plain => settings::PromptSyntax::Plain,
            PromptSyntax::Weighted => settings::PromptSyntax::Weighted,
            PromptSyntax::Lpw => settings::PromptSyntax::Lpw,
        },
        defaults: Some(Defaults {
            width_px: defaults.width.get(),
            height_px: defaults.height.get(),
            guidance_scale: defaults.guidance_scale.get(),
        }),
        ..settings::Settings::new(&manifest.checkpoint, dtype, device)
    })
}

/// What is done next to loading an engine.
struct Aside {
    warm_up: bool,
    /// The directory of an image classifier.
    checker: Option<PathBuf>,
    /// Names and files.
    upscalers: Vec<(String, PathBuf)>,
    /// The directory of a Segformer.
    segmenter: Option<PathBuf>,
}

fn started<E: Engine>(
    Aside { warm_up, checker, upscalers, segmenter }: Aside,
    load: impl FnOnce(Device) -> Result<(E, Loading), EngineError> + Send + 'static,
) -> Result<(EngineThread, Phases), EngineError> {
    let (sender, phases) = mpsc::channel();
    let thread = EngineThread::start_with_companions(move || {
        let began = Instant::now();
        let device = device::open()?;
        let opened = began.elapsed();
        // In f32 on a GPU as well: thresholds were chosen with what it gives there.
        let classifier = checker.map(|directory| Classifier::load(&directory, DType::F32, &device)).transpose()?;
        // As many numbers of 8 bits as an image has need f16: bf16 has too few between a half and 1.
        let dtype = device::default_dtype(&device);
        let upscalers = upscalers.into_iter().map(|(name, file)| Ok((name, Upscaler::load(&file, dtype, &device)?)));
        let upscalers = upscalers.collect::<Result<_, EngineError>>()?;
        let segmenter = segmenter.map(|directory| Segmenter::load(&directory, &device)).transpose()?;
        let (mut engine, loading) = load(device)?;
        let began = Instant::now();
        if warm_up {
            engine.warm_up()?;
        }
        // A caller that waits for the thread waits for this.
        let _ = sender.send(Phases { device: opened, loading, warm_up: began.elapsed() });
        Ok((Announcing::new(engine), Companions { classifier, upscalers, segmenter }))
    })?;
    Ok((thread, phases.recv().map_err(|_| EngineError::Gone)?))
}

/// None: what is default on the device.
fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::Bf16 => Some(DType::BF16),
    }
}

fn qwen(config: &Config, manifest: &Manifest, memory_budget: Option<u64>) -> Settings {
    let defaults = Areas::default();
    let modes = config.model.modes().into_iter();
    Settings {
        pipeline: if manifest.family == Family::QwenImage { Pipeline::Text } else { Pipeline::Edit },
        modes: modes.filter_map(|mode| Some((mode.as_str().to_owned(), variant(manifest.modes.of(mode)?, mode)))).collect(),
        areas: Areas {
            reference_px: manifest.reference_px.unwrap_or(defaults.reference_px),
            condition_px: manifest.condition_px.unwrap_or(defaults.condition_px),
        },
        memory_budget,
        graphs: config.engine.cuda_graphs,
        forget_between_jobs: config.workflow.advanced.clear_cache_between_jobs,
    }
}

/// What PEFT wrote has its alpha in a file next to it.
fn lora(lora: &ModeLora) -> LoraFile {
    let config = lora.file.with_file_name("adapter_config.json");
    let file = LoraFile::new(lora.file.clone(), lora.scale.get());
    if needs_config(&lora.file) && config.is_file() { LoraFile { alpha: AlphaSource::Config(config), ..file } } else { file }
}

fn variant(weights: &ModeWeights, mode: Mode) -> Variant {
    Variant {
        file: weights.transformer.clone(),
        loras: weights.loras.iter().map(lora).collect(),
        distilled: weights.is_distilled(mode),
    }
}
