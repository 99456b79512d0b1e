//! The engine's side of `bench/engine.py`, `bench/flow.py` and `bench/gpu.py`: loads a checkpoint, then does one piece of work a line of its input.

mod child;
mod flow;

use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use atelier_engine::noise::Noise;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::{Conditioning, Text};
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{Engine, GenerateRequest, LoraFile, Sampling, Watch, device};
use candle_core::Device;

use self::child::{Arguments, Inputs, timed, write};

/// `engine DIRECTORY [dtype=f32|f16|bf16]`; first line out: `ready` and what is computed in.
///
/// Lines in, and what they do; the line out is how many seconds that took, the device's work included:
/// - `generate SIDE_PX STEPS IMAGES`: images, from the prompt to pixels;
/// - `previews SIDE_PX STEPS GENERATIONS`: the first preview of this process, with the fit of its map, the middle of those after it, and the
///   middle of steps, three numbers;
/// - `unet SIDE_PX ROWS`: one forward of the UNet; `encode`: one prompt; `decode SIDE_PX`: one image;
/// - `switch LORA OTHER_LORA`: from one LoRA to another that was used before;
/// - `loras [FILE SCALE]...`: all that follows is generated with these;
/// - `budget MIB`: all that follows stays within it;
/// - `stage NAME IN OUT`: the tensors of IN through one stage (see [`stage`]) to OUT, both safetensors.
///
/// A flow model has lines of its own: [`flow::work_of`].
fn main() -> Result<()> {
    let arguments = Arguments::read(&["dtype"])?;
    let index = fs::read_to_string(arguments.directory.join("model_index.json")).context("model_index.json cannot be read")?;
    if flow::work_of(&index, &arguments)? {
        return Ok(());
    }
    let device = device::open()?;
    let dtype = arguments.dtype(device::default_dtype(&device))?;
    let mut settings = Settings::new(&arguments.directory, dtype, device.clone());
    let mut engine = StableDiffusion::load(&settings)?;
    child::ready(dtype)?;
    for line in stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["generate", side, steps, images] => {
                generate(&mut engine, &request(side.parse()?, steps.parse()?, images.parse()?))?
            }
            ["unet", side, rows] => unet(&engine, &device, side.parse()?, rows.parse()?)?,
            ["previews", side, steps, generations] => {
                let [first, next, step] =
                    previews(&mut engine, &request(side.parse()?, steps.parse()?, 1), generations.parse()?)?;
                writeln!(stdout(), "{first} {next} {step}")?;
                continue;
            }
            ["encode"] => encode(&engine, &device)?,
            ["decode", side] => decode(&engine, &device, side.parse()?)?,
            ["switch", lora, other] => switch(&mut engine, &device, lora, other)?,
            ["loras", loras @ ..] => use_loras(&mut engine, &device, loras)?,
            ["budget", mib] => {
                settings.memory_budget = Some(mib.parse::<u64>()? << 20);
                // First, so that there are never two of it in memory.
                drop(engine);
                engine = StableDiffusion::load(&settings)?;
                0.0
            }
            ["stage", name, from, to] => timed(&device, || stage(&engine, name, &Inputs::read(from, &device)?, to))?,
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

fn request(side_px: u32, steps: u32, images: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: "a red apple on a table".into(),
        negative_prompt: String::new(),
        loras: vec![],
        embeddings: vec![],
        start: None,
        controls: vec![],
        image_prompts: vec![],
        strength: 1.0,
        steps,
        guidance_scale: 7.5,
        scheduler: Scheduler::plain(Sampler::DpmSolverPlusPlus),
        sampling: Sampling::default(),
        mode: None,
        width_px: side_px,
        height_px: side_px,
        seeds: (42..42 + images).collect(),
    }
}

fn generate(engine: &mut StableDiffusion, request: &GenerateRequest) -> Result<f64> {
    let start = Instant::now();
    engine.generate(request, &Watch::new(|_| ()))?;
    Ok(start.elapsed().as_secs_f64())
}

/// When somebody was asked whether a preview is wanted, and what was seen since.
#[derive(Default)]
struct Seen {
    asked: Option<Instant>,
    stepped: Option<Instant>,
    previews: Vec<f64>,
    steps: Vec<f64>,
}

impl Seen {
    fn shown(&mut self) {
        self.previews.extend(self.asked.map(|asked| asked.elapsed().as_secs_f64()));
    }

    fn stepped(&mut self) {
        let before = self.stepped.replace(Instant::now());
        self.steps.extend(before.map(|before| before.elapsed().as_secs_f64()));
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A preview lasts from the question whether it is wanted until it is there: on a CPU nothing else is done in between. Steps are those without
/// one. A generation shows one every half second.
fn previews(engine: &mut StableDiffusion, request: &GenerateRequest, generations: u32) -> Result<[f64; 3]> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    for _ in 0..generations {
        let [asking, showing, stepping] = [(); 3].map(|()| Arc::clone(&seen));
        let watch = Watch::new(|_| ()).with_previews(
            move || {
                locked(&asking).asked = Some(Instant::now());
                true
            },
            move |_| locked(&showing).shown(),
        );
        engine.generate(request, &watch)?;
        locked(&seen).stepped = None;
        engine.generate(request, &Watch::new(move |_| locked(&stepping).stepped()))?;
    }
    let Seen { previews, steps, .. } = &mut *locked(&seen);
    let (first, next) = previews.split_first_mut().context("there was no preview: more than one step is wanted")?;
    Ok([*first, median(next)?, median(steps)?])
}

fn median(values: &mut [f64]) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("too few were seen: more steps or generations are wanted")
}

fn unet(engine: &StableDiffusion, device: &Device, side_px: u32, rows: usize) -> Result<f64> {
    let text = engine.encode_prompt("a red apple on a table", None, &Inversions::default())?;
    let text = Conditioning::for_images(&[text], &[rows])?;
    let latents = Noise::new(vec![42; rows], engine.latent_shape(side_px, side_px)?).draw(device)?;
    timed(device, || Ok(engine.predict_noise(&latents, 500.0, &text, 1.0, Tiling::default())?))
}

/// One prompt, its tokens included.
fn encode(engine: &StableDiffusion, device: &Device) -> Result<f64> {
    timed(device, || Ok(engine.encode_prompt("a red apple on a table", None, &Inversions::default())?))
}

fn decode(engine: &StableDiffusion, device: &Device, side_px: u32) -> Result<f64> {
    let latents = Noise::new([42], engine.latent_shape(side_px, side_px)?).draw(device)?;
    timed(device, || Ok(engine.decode(&latents, Tiling::default())?))
}

fn switch(engine: &mut StableDiffusion, device: &Device, lora: &str, other: &str) -> Result<f64> {
    let file = |path: &str| LoraFile::new(path.into(), 1.0);
    for lora in [lora, other] {
        engine.use_loras(&[file(lora)])?;
    }
    timed(device, || Ok(engine.use_loras(&[file(lora)])?))
}

/// `loras`: a file and its scale, again and again.
fn use_loras(engine: &mut StableDiffusion, device: &Device, loras: &[&str]) -> Result<f64> {
    let files = loras.chunks(2).map(|pair| {
        let [path, scale] = pair else { bail!("a file without a scale: {pair:?}") };
        let scale = scale.parse()?;
        Ok(LoraFile::new(path.into(), scale))
    });
    let loras = files.collect::<Result<Vec<_>>>()?;
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
            write(to, &[("states", &states.rows()?.states)])
        }
        "unet" => {
            let latents = inputs.values("latents")?;
            let text = Text::of_states(inputs.values("text")?);
            let text = Conditioning::of_rows(&text, latents.dim(0)?)?;
            let timestep = inputs.number("timestep")?;
            let guidance_scale = inputs.number("guidance_scale")?;
            write(to, &[("noise", &engine.predict_noise(&latents, timestep, &text, guidance_scale, Tiling::default())?)])
        }
        "decode" => write(to, &[("pixels", &engine.decode(&inputs.values("latents")?, Tiling::default())?)]),
        "encode" => {
            let moments = engine.encode_image(&inputs.values("pixels")?).context("no image was encoded")?;
            write(to, &[("mean", &moments.mean), ("std", &moments.std)])
        }
        _ => bail!("unknown stage: {name}"),
    }
}
