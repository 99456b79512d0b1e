//! The engine's side of `bench/engine.py` and `bench/gpu.py`: loads a checkpoint, then does one piece of work a line of its input.

mod child;

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use atelier::engine::noise::Noise;
use atelier::engine::sd::StableDiffusion;
use atelier::engine::sd::inversion::Inversions;
use atelier::engine::{Engine, GenerateRequest, LoraFile, Watch, device};
use atelier::job::task::sampling::Sampling;
use atelier::job::task::scheduler::{Sampler, Scheduler};
use atelier::job::task::{Generate, GuidanceScale, ImageCount, LoraScale, ModelName, Prompt, Seed, SidePx, Size, StepCount};
use atelier_kernels::caching_allocator::CachingAllocator;
use candle_core::Device;

use self::child::{Arguments, Inputs, timed, write};

/// Layers' results follow each other in the same memory.
#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator::new();

/// `engine DIRECTORY [dtype=f32|f16|bf16]`; first line out: `ready` and what is computed in.
///
/// Lines in, and what they do; the line out is how many seconds that took, the device's work included:
/// - `generate SIDE_PX STEPS IMAGES`: images, from the prompt to pixels;
/// - `unet SIDE_PX ROWS`: one forward of the UNet; `encode`: one prompt; `decode SIDE_PX`: one image;
/// - `switch LORA OTHER_LORA`: from one LoRA to another that was used before;
/// - `loras [FILE SCALE]...`: all that follows is generated with these;
/// - `budget MIB`: all that follows stays within it;
/// - `stage NAME IN OUT`: the tensors of IN through one stage (see [`stage`]) to OUT, both safetensors.
fn main() -> Result<()> {
    let arguments = Arguments::read(&["dtype"])?;
    let device = device::open()?;
    let dtype = arguments.dtype(device::default_dtype(&device))?;
    let mut engine = StableDiffusion::load(&arguments.directory, dtype, device.clone())?;
    child::ready(dtype)?;
    for line in stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["generate", side, steps, images] => {
                generate(&mut engine, &request(side.parse()?, steps.parse()?, images.parse()?)?)?
            }
            ["unet", side, rows] => unet(&engine, &device, side.parse()?, rows.parse()?)?,
            ["encode"] => encode(&engine, &device)?,
            ["decode", side] => decode(&engine, &device, side.parse()?)?,
            ["switch", lora, other] => switch(&mut engine, &device, lora, other)?,
            ["loras", loras @ ..] => use_loras(&mut engine, &device, loras)?,
            ["budget", mib] => {
                engine = engine.with_memory_budget(Some(mib.parse::<u64>()? << 20));
                0.0
            }
            ["stage", name, from, to] => timed(&device, || stage(&engine, name, &Inputs::read(from, &device)?, to))?,
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

fn request(side_px: u64, steps: u64, images: u64) -> Result<GenerateRequest> {
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
        scheduler: Scheduler::plain(Sampler::DpmSolverPlusPlus),
        sampling: Sampling::default(),
        size: Size::new(side, side),
        num_images: ImageCount::new(images).map_err(named)?,
        seed: Seed::new(42).map_err(named)?,
    };
    Ok(GenerateRequest { task, loras: vec![], embeddings: vec![], start: None })
}

fn generate(engine: &mut StableDiffusion, request: &GenerateRequest) -> Result<f64> {
    let start = Instant::now();
    engine.generate(request, &Watch::new(|_| ()))?;
    Ok(start.elapsed().as_secs_f64())
}

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

fn switch(engine: &mut StableDiffusion, device: &Device, lora: &str, other: &str) -> Result<f64> {
    let file = |path: &str| LoraFile { path: path.into(), scale: LoraScale::one() };
    for lora in [lora, other] {
        engine.use_loras(&[file(lora)])?;
    }
    timed(device, || Ok(engine.use_loras(&[file(lora)])?))
}

/// `loras`: a file and its scale, again and again.
fn use_loras(engine: &mut StableDiffusion, device: &Device, loras: &[&str]) -> Result<f64> {
    let file = |pair: &[&str]| {
        let [path, scale] = pair else { bail!("a file without a scale: {pair:?}") };
        let scale = LoraScale::new(scale.parse()?).map_err(|problem| anyhow::anyhow!(problem))?;
        Ok(LoraFile { path: path.into(), scale })
    };
    let loras = loras.chunks(2).map(file).collect::<Result<Vec<_>>>()?;
    timed(device, || Ok(engine.use_loras(&loras)?))
}

/// What a stage is given, and what it gives:
/// - `text`: `prompt`, and `negative` or not (UTF-8 as u8), to `states` (R, tokens, hidden);
/// - `unet`: `latents` (N, 4, H, W), `text` (N or 2N, tokens, hidden), `timestep` and `guidance_scale` (f64, (1,)), to `noise`;
/// - `decode`: `latents` to `pixels` (N, 3, 8H, 8W);
/// - `encode`: `pixels` to `mean` and `std`, scaled as latents are.
fn stage(engine: &StableDiffusion, name: &str, inputs: &Inputs, to: &str) -> Result<()> {
    match name {
        "text" => {
            let negative = inputs.get("negative").is_ok().then(|| inputs.text("negative")).transpose()?;
            let states = engine.encode_prompt(&inputs.text("prompt")?, negative.as_deref(), &Inversions::default())?;
            write(to, &[("states", &states)])
        }
        "unet" => {
            let (latents, text) = (inputs.numbers("latents")?, inputs.numbers("text")?);
            let (timestep, guidance_scale) = (inputs.number("timestep")?, inputs.number("guidance_scale")?);
            write(to, &[("noise", &engine.predict_noise(&latents, timestep, &text, guidance_scale)?)])
        }
        "decode" => write(to, &[("pixels", &engine.decode(&inputs.numbers("latents")?)?)]),
        "encode" => {
            let moments = engine.encode_image(&inputs.numbers("pixels")?).context("no image was encoded")?;
            write(to, &[("mean", &moments.mean), ("std", &moments.std)])
        }
        _ => bail!("unknown stage: {name}"),
    }
}
