//! What looking at an image costs next to encoding it: `cargo bench --bench safety`.

use std::collections::HashMap;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use atelier::job::ImageFormat;
use atelier::workflow::encode::encode;
use atelier::workflow::mark::{DigitalSource, xmp};
use atelier_engine::Image;
use atelier_engine::classifier::Classifier;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::json;

const SIDE_PX: u32 = 1_024;
/// Of which the median counts.
const ROUNDS: usize = 9;
// Of google/vit-base-patch16-224, which Falconsai/nsfw_image_detection was trained from.
const HIDDEN: usize = 768;
const INNER: usize = 3_072;
const LAYERS: usize = 12;
const PATCH_PX: usize = 16;
const SEEN_PX: usize = 224;

/// Prints a line of JSON: milliseconds of one look by a ViT of full size with random weights, of encoding the same image, and their ratio.
fn main() -> Result<()> {
    let home = tempfile::tempdir()?;
    write_classifier(home.path())?;
    let classifier = Classifier::load(home.path(), DType::F32, &Device::Cpu)?;
    let seen = RgbImage::from_fn(SIDE_PX, SIDE_PX, |x, y| image::Rgb([x as u8, y as u8, (x / 4 + y / 4) as u8]));
    let look_ms = median(|| classifier.classify(std::slice::from_ref(&seen)).map(drop).map_err(Into::into))?;
    let mark = xmp(DigitalSource::TrainedAlgorithmicMedia, None);
    let image = Image { width_px: SIDE_PX, height_px: SIDE_PX, rgb: seen.into_raw(), seed: 0 };
    let encode_ms = median(|| encode(&image, ImageFormat::Png, &[], &mark).map(drop).map_err(Into::into))?;
    let row = json!({
        "what": format!("look_{SIDE_PX}"),
        "look_ms": look_ms,
        "encode_ms": encode_ms,
        "ratio": look_ms / encode_ms,
    });
    writeln!(stdout(), "{row}")?;
    Ok(())
}

fn median(mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took_ms = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        round()?;
        took_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took_ms.sort_by(f64::total_cmp);
    took_ms.get(ROUNDS / 2).copied().context("no round was measured")
}

/// A `ViTForImageClassification` of full size.
fn write_classifier(directory: &Path) -> Result<()> {
    let config = json!({
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 12, "image_size": SEEN_PX, "patch_size": PATCH_PX, "num_channels": 3,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": true, "id2label": { "0": "normal", "1": "nsfw" }
    });
    let preprocessor = json!({
        "image_processor_type": "ViTImageProcessor", "do_resize": true, "size": { "height": SEEN_PX, "width": SEEN_PX }, "resample": 2,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    fs::write(directory.join("preprocessor_config.json"), preprocessor.to_string())?;
    let mut tensors = HashMap::new();
    let places = (SEEN_PX / PATCH_PX) * (SEEN_PX / PATCH_PX) + 1;
    add(&mut tensors, "vit.embeddings.cls_token", &[1, 1, HIDDEN])?;
    add(&mut tensors, "vit.embeddings.position_embeddings", &[1, places, HIDDEN])?;
    add(&mut tensors, "vit.embeddings.patch_embeddings.projection.weight", &[HIDDEN, 3, PATCH_PX, PATCH_PX])?;
    add(&mut tensors, "vit.embeddings.patch_embeddings.projection.bias", &[HIDDEN])?;
    for layer in 0..LAYERS {
        let name = format!("vit.encoder.layer.{layer}");
        for part in
            ["attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"]
        {
            add_linear(&mut tensors, &format!("{name}.{part}"), HIDDEN, HIDDEN)?;
        }
        add_linear(&mut tensors, &format!("{name}.intermediate.dense"), HIDDEN, INNER)?;
        add_linear(&mut tensors, &format!("{name}.output.dense"), INNER, HIDDEN)?;
        for norm in ["layernorm_before", "layernorm_after"] {
            add(&mut tensors, &format!("{name}.{norm}.weight"), &[HIDDEN])?;
            add(&mut tensors, &format!("{name}.{norm}.bias"), &[HIDDEN])?;
        }
    }
    add(&mut tensors, "vit.layernorm.weight", &[HIDDEN])?;
    add(&mut tensors, "vit.layernorm.bias", &[HIDDEN])?;
    add_linear(&mut tensors, "classifier", HIDDEN, 2)?;
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors"))?;
    Ok(())
}

fn add_linear(tensors: &mut HashMap<String, Tensor>, name: &str, from: usize, to: usize) -> Result<()> {
    add(tensors, &format!("{name}.weight"), &[to, from])?;
    add(tensors, &format!("{name}.bias"), &[to])
}

fn add(tensors: &mut HashMap<String, Tensor>, name: &str, shape: &[usize]) -> Result<()> {
    tensors.insert(name.to_owned(), Tensor::randn(0_f32, 0.02, shape, &Device::Cpu)?);
    Ok(())
}
