//! The try-on engine's side of `bench/edit.py`: loads a checkpoint, then times one piece of work a line of its input.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use atelier::engine::device;
use atelier::engine::qwen::packing::Grid;
use atelier::engine::qwen::precision::Precision;
use atelier::engine::qwen::sizes::Areas;
use atelier::engine::qwen::text::TextEncoder;
use atelier::engine::qwen::{QwenImageEdit, Variant};
use atelier_kernels::recycler::Recycler;
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

/// Layers' results follow each other in the same memory.
#[global_allocator]
static ALLOCATOR: Recycler = Recycler::new();

/// Lines in: `look SIDE_PX REFERENCES TEXT_TOKENS`, `see SIDE_PX`, `decode SIDE_PX`. Lines out: seconds.
fn main() -> Result<()> {
    // `cargo bench` adds an argument of its own.
    let folder = std::env::args().nth(1).filter(|argument| argument != "--bench").context("give a checkpoint's folder")?;
    let (folder, device) = (Path::new(&folder), device::open()?);
    let precision = Precision::of(&device);
    let mut model = QwenImageEdit::load(folder, &Variant::default(), precision, device.clone())?;
    let encoder = TextEncoder::load(folder, Areas::default().condition_px, precision, device.clone())?;
    writeln!(stdout(), "ready")?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let work = words.next().context("an empty line")?;
        let seconds = match (work, words.collect::<Vec<_>>().as_slice()) {
            ("look", [side, references, text]) => look(&mut model, side.parse()?, references.parse()?, text.parse()?, &device)?,
            ("see", [side]) => see(&encoder, side.parse()?)?,
            ("decode", [side]) => decode(&model, side.parse()?, &device)?,
            _ => bail!("unknown work: {line}"),
        };
        writeln!(stdout(), "{seconds}")?;
    }
    Ok(())
}

/// One forward of the transformer, batch 1; output and references have the same size. Modulation is not part of it: it is computed
/// once a schedule.
fn look(model: &mut QwenImageEdit, side_px: u32, references: usize, text_tokens: usize, device: &Device) -> Result<f64> {
    let grid = model.grid(side_px, side_px)?;
    let grids: Vec<Grid> = vec![grid; references + 1];
    let config = &model.checkpoint().transformer;
    let (numbers, joint) = (config.in_channels, config.joint_attention_dim);
    let tokens = Tensor::randn(0.0_f32, 1.0, (1, grid.tokens() * grids.len(), numbers), device)?;
    let text = Tensor::randn(0.0_f32, 1.0, (1, text_tokens, joint), device)?;
    let moments = model.moments(&[500.0])?;
    let start = Instant::now();
    model.look(&tokens, &text, &grids, &moments[0])?.velocity.to_dtype(DType::F32)?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The vision tower over one square picture's patches, the patches included.
fn see(encoder: &TextEncoder, side_px: u32) -> Result<f64> {
    let picture = RgbImage::from_fn(side_px, side_px, |x, y| Rgb([x as u8, y as u8, (x + y) as u8]));
    let start = Instant::now();
    encoder.sight().see(&picture)?.tokens.to_dtype(DType::F32)?.device().synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

fn decode(model: &QwenImageEdit, side_px: u32, device: &Device) -> Result<f64> {
    let grid = model.grid(side_px, side_px)?;
    let tokens = Tensor::randn(0.0_f32, 1.0, (1, grid.tokens(), 4 * model.checkpoint().vae.z_dim), device)?;
    let start = Instant::now();
    model.decode(&tokens, grid)?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}
