//! What the benchmark's program does with a flow model.

use std::io::{BufRead as _, Write as _, stdin, stdout};

use anyhow::{Result, bail};
use atelier_engine::flow::engine::{FlowEngine, Settings};
use atelier_engine::flow::family::Family;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::flux2::Flux2;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{Engine as _, GenerateRequest, Watch, device};
use candle_core::{DType, Tensor};

use crate::child::{self, Arguments, timed};

const PROMPT: &str = "a red apple on a table";

/// Does the work of `main` for a checkpoint of the diffusers pipeline that `index`, its `model_index.json`, names; `false` where that is of no flow model.
///
/// Lines in, and what they do:
/// - `look WIDTH_PX HEIGHT_PX CHANNELS LATENT_PX`: one forward of the transformer, over latents of so many channels, each of so many pixels a side;
/// - `generate WIDTH_PX HEIGHT_PX STEPS`: an image, from the prompt to pixels.
///
/// # Errors
/// When the checkpoint cannot be loaded, or a line is not understood.
pub(crate) fn work_of(index: &str, arguments: &Arguments) -> Result<bool> {
    let is_of = |pipeline: &str| index.contains(&format!("\"{pipeline}\""));
    if is_of(Flux::PIPELINE) {
        work::<Flux>(arguments)?;
    } else if is_of(Flux2::PIPELINE) {
        work::<Flux2>(arguments)?;
    } else if is_of(ZImage::PIPELINE) {
        work::<ZImage>(arguments)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn work<F: Family>(arguments: &Arguments) -> Result<()> {
    let device = device::open()?;
    let dtype = arguments.dtype(if device.is_cpu() { DType::F32 } else { DType::BF16 })?;
    let settings = Settings {
        transformer: None,
        text_encoder: None,
        dtype,
        width_px: 1024,
        height_px: 1024,
        memory_budget: None,
        graphs: true,
    };
    let mut engine = FlowEngine::<F>::load(&arguments.directory, settings, device.clone())?;
    child::ready(dtype)?;
    for line in stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["look", width, height, channels, latent_px] => {
                let text = engine.encode_prompt(PROMPT)?;
                let latent_px = latent_px.parse::<usize>()?;
                let sides: (usize, usize) = (height.parse()?, width.parse()?);
                let shape = (1, channels.parse::<usize>()?, sides.0 / latent_px, sides.1 / latent_px);
                let latents = Tensor::randn(0.0_f32, 1.0, shape, &device)?;
                timed(&device, || Ok(engine.predict(&latents, 500.0, &text)?))?
            }
            ["generate", width, height, steps] => {
                let request = request(width.parse()?, height.parse()?, steps.parse()?);
                timed(&device, || Ok(engine.generate(&request, &Watch::new(|_| ()))?))?
            }
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

fn request(width_px: u32, height_px: u32, steps: u32) -> GenerateRequest {
    let scheduler = Scheduler::plain(Sampler::Euler);
    GenerateRequest { guidance_scale: 1.0, scheduler, width_px, height_px, ..crate::request(width_px, steps, 1) }
}
