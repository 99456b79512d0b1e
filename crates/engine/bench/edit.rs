//! The try-on engine's side of `bench/edit.py` and `bench/gpu.py`: loads a checkpoint, then does one piece of work a line of its input.

mod child;

use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use atelier_engine::qwen::packing::Grid;
use atelier_engine::qwen::pipeline::Edit;
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::sizes::Areas;
use atelier_engine::qwen::text::TextEncoder;
use atelier_engine::qwen::{QwenImage, Variant};
use atelier_engine::resample::{Filter, resize};
use atelier_engine::{LoraFile, Watch, device};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use self::child::{Arguments, Inputs, timed, write};

/// `edit DIRECTORY [dtype=f32|f16|bf16] [transformer=FILE] [lora=FILE]`: FILE stands in the place of the directory's own transformer, 8-bit
/// weights usually; first line out: `ready` and what is computed in. The text encoder is loaded when a line wants it first.
///
/// Lines in, and what they do; the line out is how many seconds that took, the device's work included:
/// - `look WIDTH_PX HEIGHT_PX REFERENCES REFERENCE_PX TEXT_TOKENS`: one forward of the transformer, batch 1, references of
///   `REFERENCE_PX` a side. Modulation is not part of it: it is computed once a schedule;
/// - `see SIDE_PX`: the vision tower over one square image, its patches included; `decode WIDTH_PX HEIGHT_PX`: one image;
/// - `edit WIDTH_PX HEIGHT_PX REFERENCES STEPS`: an image from words and images to pixels, no guidance, nothing known from before;
/// - `stage NAME IN OUT`: the tensors of IN through one stage (see [`Bench::stage`]) to OUT, both safetensors.
fn main() -> Result<()> {
    let arguments = Arguments::read(&["dtype", "transformer", "lora"])?;
    let mut bench = Bench::load(&arguments)?;
    child::ready(bench.precision.compute)?;
    for line in stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["look", width, height, references, reference, text] => {
                bench.predict((width.parse()?, height.parse()?), references.parse()?, reference.parse()?, text.parse()?)?
            }
            ["see", side] => bench.see(side.parse()?)?,
            ["decode", width, height] => bench.decode(width.parse()?, height.parse()?)?,
            ["edit", width, height, references, steps] => {
                bench.edit((width.parse()?, height.parse()?), references.parse()?, steps.parse()?)?
            }
            ["stage", name, from, to] => {
                let device = bench.device.clone();
                timed(&device, || bench.stage(name, &Inputs::read(from, &device)?, to))?
            }
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

struct Bench {
    directory: PathBuf,
    precision: Precision,
    device: Device,
    model: QwenImage,
    encoder: Option<TextEncoder>,
}

impl Bench {
    fn load(arguments: &Arguments) -> Result<Self> {
        let directory = arguments.directory.clone();
        let device = device::open()?;
        let defaults = Precision::of(&device);
        let precision = Precision { compute: arguments.dtype(defaults.compute)?, ..defaults };
        let lora = arguments.get("lora").map(|path| LoraFile::new(path.into(), 1.0));
        let file = arguments.get("transformer").map(PathBuf::from);
        let variant = Variant { file, loras: lora.into_iter().collect(), distilled: false };
        let model = QwenImage::load(&directory, &variant, precision, device.clone())?;
        Ok(Self { directory, precision, device, model, encoder: None })
    }

    fn load_encoder(&mut self) -> Result<()> {
        if self.encoder.is_none() {
            let condition_px = Areas::default().condition_px;
            self.encoder = Some(TextEncoder::load(&self.directory, Some(condition_px), self.precision, self.device.clone())?);
        }
        Ok(())
    }

    fn encoder(&mut self) -> Result<&mut TextEncoder> {
        self.load_encoder()?;
        self.encoder.as_mut().context("it was loaded")
    }

    fn predict(
        &mut self,
        (width, height): (u32, u32),
        references: usize,
        reference_px: u32,
        text_tokens: usize,
    ) -> Result<f64> {
        let mut grids = vec![self.model.grid(width, height)?];
        grids.extend(vec![self.model.grid(reference_px, reference_px)?; references]);
        let config = &self.model.checkpoint().transformer;
        let count = grids.iter().map(|grid| grid.tokens()).sum::<usize>();
        let tokens = Tensor::randn(0.0_f32, 1.0, (1, count, config.in_channels), &self.device)?;
        let text = Tensor::randn(0.0_f32, 1.0, (1, text_tokens, config.joint_attention_dim), &self.device)?;
        let moments = self.model.conditionings(&[500.0])?;
        timed(&self.device, || Ok(self.model.predict(&tokens, &text, &grids, &moments[0])?.velocity.to_dtype(DType::F32)?))
    }

    fn see(&mut self, side_px: u32) -> Result<f64> {
        let image = image(side_px, side_px, 0);
        let device = self.device.clone();
        let encoder = self.encoder()?;
        let sight = encoder.sight().context("it sees")?;
        timed(&device, || Ok(sight.see(&image)?.tokens.to_dtype(DType::F32)?))
    }

    fn decode(&self, width_px: u32, height_px: u32) -> Result<f64> {
        let grid = self.model.grid(width_px, height_px)?;
        let values = 4 * self.model.checkpoint().vae.z_dim;
        let tokens = Tensor::randn(0.0_f32, 1.0, (1, grid.tokens(), values), &self.device)?;
        timed(&self.device, || Ok(self.model.decode(&tokens, grid)?))
    }

    fn edit(&mut self, (width_px, height_px): (u32, u32), references: u8, steps: u32) -> Result<f64> {
        let images: Vec<RgbImage> = (0..references).map(|number| image(768, 1024, number)).collect();
        self.load_encoder()?;
        let device = self.device.clone();
        let model = &mut self.model;
        let encoder = self.encoder.as_mut().context("it was loaded")?;
        model.forget();
        encoder.forget();
        timed(&device, || {
            let positive = encoder.encode("Dress the person in image 1 in the garment of image 2.", &images)?;
            let scaled = images.iter().map(|image| {
                let (width_px, height_px) = model.reference_size(image.width(), image.height());
                resize(image, width_px, height_px, Filter::Lanczos)
            });
            let references: Vec<RgbImage> = scaled.collect();
            let seeds = vec![42];
            let edit =
                Edit { positive, negative: None, guidance_scale: 1.0, steps, step_cache: None, seeds, width_px, height_px };
            Ok(model.generate(&edit, &references, &Watch::new(|_| ()))?)
        })
    }

    /// What a stage is given, and what it gives:
    /// - `velocity`: `tokens` (1, T, 4·channels), `text` (1, S, joint), `grids` (i64: height and width in tokens, a row an image, the
    ///   output first), `timestep` (f64, (1,), of 1000), to `velocity`;
    /// - `decode`: `tokens` and `grids` (of one image) to `pixels` (1, 3, H, W);
    /// - `reference`: `image` (u8, (H, W, 3)) to `tokens`;
    /// - `hidden`: `prompt` (UTF-8 as u8) and the images `0`, `1`, … to `states`.
    fn stage(&mut self, name: &str, inputs: &Inputs, to: &str) -> Result<()> {
        match name {
            "velocity" => {
                let moments = self.model.conditionings(&[inputs.number("timestep")? as f32])?;
                let tokens = inputs.values("tokens")?;
                let text = inputs.values("text")?;
                write(to, &[("velocity", &self.model.predict(&tokens, &text, &grids(inputs)?, &moments[0])?.velocity)])
            }
            "decode" => write(to, &[("pixels", &self.model.decode(&inputs.values("tokens")?, grids(inputs)?[0])?)]),
            "reference" => {
                let image = rgb(inputs.get("image")?)?;
                write(to, &[("tokens", &self.model.encode_reference(&image)?.tokens)])
            }
            "hidden" => {
                let shown = (0..).map_while(|number: u8| inputs.get(&number.to_string()).ok()).map(rgb);
                let shown = shown.collect::<Result<Vec<_>>>()?;
                let prompt = inputs.text("prompt")?;
                write(to, &[("states", &self.encoder()?.encode(&prompt, &shown)?)])
            }
            _ => bail!("unknown stage: {name}"),
        }
    }
}

fn grids(inputs: &Inputs) -> Result<Vec<Grid>> {
    let rows = inputs.get("grids")?.to_vec2::<i64>()?;
    Ok(rows.iter().map(|row| Grid { height: row[0] as usize, width: row[1] as usize }).collect())
}

fn rgb(values: &Tensor) -> Result<RgbImage> {
    let (height, width, _) = values.dims3()?;
    RgbImage::from_raw(width as u32, height as u32, values.flatten_all()?.to_vec1()?).context("not three bytes a pixel")
}

fn image(width_px: u32, height_px: u32, number: u8) -> RgbImage {
    RgbImage::from_fn(width_px, height_px, |x, y| Rgb([x as u8, y as u8, ((x + y) as u8).wrapping_add(number)]))
}
