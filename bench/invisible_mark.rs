//! What the invisible mark costs and changes: `cargo bench --bench invisible_mark`, and our side of `bench/invisible_mark.py`.

use std::env::args;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use atelier::invisible_mark;
use atelier::job::ImageFormat;
use atelier::workflow::encode::encode;
use atelier_engine::Image;
use serde_json::{Value, json};

const SIDE_PX: u32 = 1_024;
/// Of which the median counts.
const ROUNDS: usize = 9;

/// Without arguments: what marking an image costs next to encoding it. `mark FROM TO`: marks the PNG files of a directory.
/// `read DIRECTORY`: the mark of each file. Prints lines of JSON.
fn main() -> Result<()> {
    // `cargo bench` says that it is one.
    let arguments: Vec<String> = args().skip(1).filter(|argument| argument != "--bench").collect();
    let rows = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => costs()?,
        ["mark", from, to] => each(from, |path| marked(path, Path::new(to)))?,
        ["read", directory] => each(directory, found)?,
        _ => bail!("mark FROM TO, read DIRECTORY, or nothing"),
    };
    let mut out = stdout();
    rows.iter().try_for_each(|row| writeln!(out, "{row}"))?;
    Ok(())
}

fn costs() -> Result<Vec<Value>> {
    let plain = smooth();
    let mut mark_ms = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let mut rgb = plain.rgb.clone();
        let began = Instant::now();
        invisible_mark::embed(&mut rgb, SIDE_PX, SIDE_PX);
        mark_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let mark_ms = median(mark_ms);
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp].into_iter().map(|format| {
        let mut encode_ms = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            encode(&plain, format, &[], "<x:xmpmeta/>")?;
            encode_ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let encode_ms = median(encode_ms);
        let what = format!("mark_{SIDE_PX}_{}", format.extension());
        Ok(json!({ "what": what, "encode_ms": encode_ms, "mark_ms": mark_ms, "ratio": mark_ms / encode_ms }))
    });
    formats.collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn each(directory: &str, row: impl Fn(&Path) -> Result<Value>) -> Result<Vec<Value>> {
    let mut paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| row(path)).collect()
}

fn marked(path: &Path, to: &Path) -> Result<Value> {
    let plain = image::open(path)?.into_rgb8();
    let mut marked = plain.clone();
    invisible_mark::embed(&mut marked, plain.width(), plain.height());
    let name = path.file_name().context("a file")?;
    marked.save(to.join(name))?;
    let differences = plain.iter().zip(marked.iter()).map(|(before, after)| before.abs_diff(*after));
    let square: f64 = differences.clone().map(|difference| f64::from(difference).powi(2)).sum();
    let psnr_db = 10.0 * (255.0_f64.powi(2) * plain.len() as f64 / square).log10();
    Ok(json!({ "file": name.to_string_lossy(), "psnr_db": psnr_db, "furthest": differences.max() }))
}

fn found(path: &Path) -> Result<Value> {
    let image = image::open(path)?.into_rgb8();
    let found = invisible_mark::read(image.as_raw(), image.width(), image.height());
    Ok(json!({ "file": path.file_name().context("a file")?.to_string_lossy(), "found": found }))
}

/// Smooth, with some noise.
fn smooth() -> Image {
    let pixels = (0..SIDE_PX).flat_map(|y| (0..SIDE_PX).map(move |x| (x, y)));
    let rgb = pixels.flat_map(|(x, y)| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 29;
        [x / 8 + noise, y / 8 + noise, (x + y) / 16 + noise].map(|value| value as u8)
    });
    Image { width_px: SIDE_PX, height_px: SIDE_PX, rgb: rgb.collect(), seed: 0 }
}
