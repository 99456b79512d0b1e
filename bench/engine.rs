//! The engine's side of `bench/engine.py`: loads a checkpoint, then times one piece of work a line of its input.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use atelier::engine::noise::Noise;
use atelier::engine::sd::StableDiffusion;
use atelier::engine::{Engine, PaintRequest, Watch, device};
use atelier::job::task::{Generate, GuidanceScale, ImageCount, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount};

/// Lines in: `paint SIDE_PX STEPS IMAGES`, `unet SIDE_PX`, `decode SIDE_PX`. Lines out: seconds.
fn main() -> Result<()> {
    // `cargo bench` adds an argument of its own.
    let folder = std::env::args().nth(1).filter(|argument| argument != "--bench").context("give a checkpoint's folder")?;
    let mut engine = StableDiffusion::load(Path::new(&folder), device::open()?)?;
    writeln!(stdout(), "ready")?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let work = words.next().context("an empty line")?;
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let seconds = match (work, numbers.as_slice()) {
            ("paint", [side, steps, images]) => paint(&mut engine, &request(*side, *steps, *images)?)?,
            ("unet", [side]) => unet(&engine, *side as u32)?,
            ("decode", [side]) => decode(&engine, *side as u32)?,
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
        steps: StepCount::new(steps).map_err(named)?,
        guidance_scale: GuidanceScale::new(7.5).map_err(named)?,
        scheduler: Scheduler::DpmSolverPlusPlus,
        size: Size::new(side, side),
        num_images: ImageCount::new(images).map_err(named)?,
        seed: Seed::new(42).map_err(named)?,
    };
    Ok(PaintRequest { task, loras: vec![] })
}

fn paint(engine: &mut StableDiffusion, request: &PaintRequest) -> Result<f64> {
    let start = Instant::now();
    engine.paint(request, &Watch::new(|_| ()))?;
    Ok(start.elapsed().as_secs_f64())
}

/// One forward of the UNet, batch 1.
fn unet(engine: &StableDiffusion, side_px: u32) -> Result<f64> {
    let device = device::open()?;
    let text = engine.encode_prompt("a red apple on a table", None)?;
    let latents = Noise::new([42], engine.latent_shape(side_px, side_px)?).draw(&device)?;
    let start = Instant::now();
    engine.predict_noise(&latents, 500.0, &text, 1.0)?;
    Ok(start.elapsed().as_secs_f64())
}

fn decode(engine: &StableDiffusion, side_px: u32) -> Result<f64> {
    let latents = Noise::new([42], engine.latent_shape(side_px, side_px)?).draw(&device::open()?)?;
    let start = Instant::now();
    engine.decode(&latents)?;
    Ok(start.elapsed().as_secs_f64())
}
