//! What stands next to the engine of a test's function: upscalers and segmenters of the fixtures.

use std::path::Path;

use atelier::job;
use atelier::job::task::ModelName;
use atelier::job::task::upscale::{self, UpscaleFactor};
use atelier::job::upscalers::Upscalers;
use atelier_engine::Engine;
use atelier_engine::segmenter::Segmenter;
use atelier_engine::thread::{Companions, EngineThread};
use atelier_engine::upscaler::Upscaler;
use candle_core::{DType, Device};

/// One of the fixtures'.
fn upscaler(name: &str) -> Upscaler {
    let file = format!("{}/tests/fixtures/upscalers/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    Upscaler::load(Path::new(&file), DType::F32, &Device::Cpu).unwrap()
}

/// What stands next to the engine: upscalers and their factors, a segmenter, all by their names among the fixtures.
#[derive(Default)]
pub(crate) struct LoadedFixtures<'a> {
    pub(crate) upscalers: &'a [(&'a str, u32)],
    pub(crate) segmenter: Option<&'a str>,
}

/// One of the fixtures'.
pub(crate) fn segmenter(name: &str) -> Segmenter {
    let directory = format!("{}/tests/fixtures/segmenter/{name}", env!("CARGO_MANIFEST_DIR"));
    Segmenter::load(Path::new(&directory), &Device::Cpu).unwrap()
}

pub(crate) fn classes(name: &str) -> job::segmenter::Segmenter {
    job::segmenter::Segmenter { classes: segmenter(name).labels().to_vec(), licence: Some("CC0-1.0".to_owned()) }
}

/// The engine's thread, with what stands next to it.
pub(crate) fn started(engine: impl Engine + Send + 'static, fixtures: &LoadedFixtures<'_>) -> EngineThread {
    let names: Vec<String> = fixtures.upscalers.iter().map(|(name, _)| (*name).to_owned()).collect();
    let segmenter = fixtures.segmenter.map(segmenter);
    let thread = EngineThread::start_with_companions(move || {
        let upscalers = names.into_iter().map(|name| (name.clone(), upscaler(&name))).collect();
        Ok((engine, Companions { upscalers, segmenter, ..Companions::default() }))
    });
    thread.unwrap()
}

pub(crate) fn listed(named: &[(&str, u32)], max_pixels: u64) -> Upscalers {
    let listed = named.iter().map(|(name, factor)| upscale::Upscaler {
        name: ModelName::new(name).unwrap(),
        factor: UpscaleFactor::new((*factor).into()).unwrap(),
        licence: Some("CC0-1.0".to_owned()),
    });
    Upscalers { listed: listed.collect(), max_pixels }
}
