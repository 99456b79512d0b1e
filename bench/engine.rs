//! The engine's side of `bench/engine.py`: loads a checkpoint, then times one piece of work a line of its input.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use atelier::engine::noise::Noise;
use atelier::engine::sd::StableDiffusion;
use atelier::engine::sd::inversion::Inversions;
use atelier::engine::{Engine, LoraFile, PaintRequest, Watch, device};
use atelier::job::task::{
    Generate, GuidanceScale, ImageCount, LoraScale, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount,
};
use atelier_kernels::recycler::Recycler;
use candle_core::{DType, Device};

/// Layers' results follow each other in the same memory.
#[global_allocator]
static ALLOCATOR: Recycler = Recycler::new();

/// Lines in: `paint SIDE_PX STEPS IMAGES`, `unet SIDE_PX ROWS`, `encode`, `decode SIDE_PX`, `switch LORA OTHER_LORA`,
/// `budget MIB`. Lines out: seconds, the device's work included.
fn main() -> Result<()> {
    // `cargo bench` adds an argument of its own.
    let folder = std::env::args().nth(1).filter(|argument| argument != "--bench").context("give a checkpoint's folder")?;
    let device = device::open()?;
    let mut engine = StableDiffusion::load(Path::new(&folder), DType::F32, device.clone())?;
    writeln!(stdout(), "ready")?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let work = words.next().context("an empty line")?;
        let seconds = match (work, words.collect::<Vec<_>>().as_slice()) {
            ("paint", [side, steps, images]) => paint(&mut engine, &request(side.parse()?, steps.parse()?, images.parse()?)?)?,
            ("unet", [side, rows]) => unet(&engine, &device, side.parse()?, rows.parse()?)?,
            ("encode", []) => encode(&engine, &device)?,
            ("decode", [side]) => decode(&engine, &device, side.parse()?)?,
            ("switch", [lora, other]) => switch(&mut engine, &device, lora, other)?,
            ("budget", [mib]) => {
                engine = engine.with_memory_budget(Some(mib.parse::<u64>()? << 20));
                0.0
            }
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

fn request(side_px: u64, steps: u64, images: u64) -> Result<PaintRequest> {
    let named = |problem: String| anyhow::anyhow!(problem);
    let side = SidePx::new(side_px).map_err(named)?;
    let task = Generate {
        model: ModelName::new("bench").map_err(named)?,
        prompt: Prompt::new("a red apple on a table").map_err(named)?,
        negative_prompt: Prompt::default(),
        loras: vec![],
        embeddings: vec![],
        start: None,
        steps: StepCount::new(steps).map_err(named)?,
        guidance_scale: GuidanceScale::new(7.5).map_err(named)?,
        scheduler: Scheduler::DpmSolverPlusPlus,
        size: Size::new(side, side),
        num_images: ImageCount::new(images).map_err(named)?,
        seed: Seed::new(42).map_err(named)?,
    };
    Ok(PaintRequest { task, loras: vec![], embeddings: vec![], start: None })
}

fn paint(engine: &mut StableDiffusion, request: &PaintRequest) -> Result<f64> {
    let start = Instant::now();
    engine.paint(request, &Watch::new(|_| ()))?;
    Ok(start.elapsed().as_secs_f64())
}

/// One forward of the UNet over so many rows.
fn unet(engine: &StableDiffusion, device: &Device, side_px: u32, rows: usize) -> Result<f64> {
    let text = engine.encode_prompt("a red apple on a table", None, &Inversions::default())?;
    let text = text.repeat((rows, 1, 1))?;
    let latents = Noise::new(vec![42; rows], engine.latent_shape(side_px, side_px)?).draw(device)?;
    timed(device, || Ok(engine.predict_noise(&latents, 500.0, &text, 1.0)?))
}

/// One prompt, its tokens included.
fn encode(engine: &StableDiffusion, device: &Device) -> Result<f64> {
    timed(device, || Ok(engine.encode_prompt("a red apple on a table", None, &Inversions::default())?))
}

fn decode(engine: &StableDiffusion, device: &Device, side_px: u32) -> Result<f64> {
    let latents = Noise::new([42], engine.latent_shape(side_px, side_px)?).draw(device)?;
    timed(device, || Ok(engine.decode(&latents)?))
}

/// From one LoRA to another that was used before, the device's work included.
fn switch(engine: &mut StableDiffusion, device: &Device, lora: &str, other: &str) -> Result<f64> {
    let file = |path: &str| LoraFile { path: path.into(), scale: LoraScale::one() };
    for lora in [lora, other] {
        engine.use_loras(&[file(lora)])?;
    }
    timed(device, || Ok(engine.use_loras(&[file(lora)])?))
}

/// Seconds of `work`, from an idle device to an idle device.
fn timed<R>(device: &Device, work: impl FnOnce() -> Result<R>) -> Result<f64> {
    device.synchronize()?;
    let start = Instant::now();
    work()?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}
