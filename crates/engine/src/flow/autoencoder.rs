//! The autoencoders of flows: Stable Diffusion's as it is, and FLUX.2's, which norms latents by channel.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use image::RgbImage;
use serde::Deserialize;

use super::references::prepared;
use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::original_names::canonical;
use crate::pixels::to_pixels;
use crate::qwen::packing::{Grid, pack};
use crate::qwen::references::Reference;
use crate::sd::config::VaeConfig;
use crate::sd::vae::VaeDecoder;
use crate::sd::vae_encoder::{Moments, VaeEncoder};
use crate::weights::laid_out::laid_out;
use crate::weights::{build_from, component_files};

const PLAIN: Fixed = &[
    ("_class_name", &["\"AutoencoderKL\""]),
    ("act_fn", &["\"silu\""]),
    ("latents_mean", &["null"]),
    ("latents_std", &["null"]),
    ("mid_block_add_attention", &["true"]),
    ("out_channels", &["3"]),
];
const NORMALISED: Fixed = &[
    ("_class_name", &["\"AutoencoderKLFlux2\""]),
    ("act_fn", &["\"silu\""]),
    ("in_channels", &["3"]),
    ("mid_block_add_attention", &["true"]),
    ("out_channels", &["3"]),
    ("patch_size", &["2"]),
];

/// Which autoencoder a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// diffusers' `AutoencoderKL`; its latents are the loop's.
    Plain,
    /// diffusers' `AutoencoderKLFlux2`: the loop has 2x2 latents of all channels in one place, normed by what was measured of each.
    Normalised,
}

/// `vae/config.json`.
#[derive(Debug, Clone)]
pub(super) struct AutoencoderConfig {
    kind: Kind,
    pub(super) vae: VaeConfig,
    decoder_widths: Vec<usize>,
    eps: f64,
}

/// What FLUX.2's says besides.
#[derive(Deserialize)]
struct Normed {
    #[serde(default)]
    decoder_block_out_channels: Option<Vec<usize>>,
    #[serde(default = "epsilon")]
    batch_norm_eps: f64,
}

impl AutoencoderConfig {
    /// Reads `vae/config.json` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with what is missing in it or not supported, and what would be.
    pub(super) fn read(directory: &Path, kind: Kind) -> std::result::Result<Self, EngineError> {
        let path = directory.join("vae/config.json");
        let mut vae: VaeConfig = read(&path, if kind == Kind::Plain { PLAIN } else { NORMALISED })?;
        let Normed { decoder_block_out_channels, batch_norm_eps: eps } = read(&path, &[])?;
        let own = decoder_block_out_channels.filter(|_| kind == Kind::Normalised);
        if kind == Kind::Normalised {
            // It has neither; the norm stands in their place.
            vae.scaling_factor = 1.0;
            vae.shift_factor = None;
        }
        let levels = vae.block_out_channels.len();
        let decoder_widths = own.unwrap_or_else(|| vae.block_out_channels.clone());
        if levels == 0 || decoder_widths.len() != levels {
            let problem = "block_out_channels must not be empty, and decoder_block_out_channels as long".to_owned();
            return Err(EngineError::Checkpoint { path, problem });
        }
        Ok(Self { kind, vae, decoder_widths, eps })
    }

    /// Channels, rows and columns of the loop's latents, of an image of so many tokens.
    pub(super) fn latents(&self, grid: Grid) -> (usize, usize, usize) {
        let channels = self.vae.latent_channels;
        match self.kind {
            Kind::Plain => (channels, 2 * grid.height, 2 * grid.width),
            Kind::Normalised => (4 * channels, grid.height, grid.width),
        }
    }

    /// The sides in tokens of latents of the loop.
    pub(super) fn grid(&self, latents: &Tensor) -> Result<Grid> {
        let (_, _, height, width) = latents.dims4()?;
        Ok(match self.kind {
            Kind::Plain => Grid { height: height / 2, width: width / 2 },
            Kind::Normalised => Grid { height, width },
        })
    }

    /// Pixels of a latent's side in the loop of a plain one.
    pub(super) fn latent_px(&self) -> usize {
        self.vae.pixels_per_latent()
    }

    /// Pixels of a token's side.
    pub(super) fn token_px(&self) -> usize {
        2 * self.vae.pixels_per_latent()
    }
}

/// A loaded autoencoder.
pub(super) struct Autoencoder {
    decoder: VaeDecoder,
    latents: Latents,
    token_px: u32,
    device: Device,
    bytes: u64,
}

/// What an image becomes in the loop.
enum Latents {
    /// None: the files have no encoder.
    Plain(Option<VaeEncoder>),
    Normed(NormedLatents),
}

/// An encoder, and what its latents are normed by for the loop: (4·channels,) each, f32.
struct NormedLatents {
    encoder: VaeEncoder,
    mean: Tensor,
    deviation: Tensor,
}

impl Autoencoder {
    /// Reads the weight files in `vae/` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] lists the tensors that are missing or have another shape.
    pub(super) fn read(
        directory: &Path,
        config: &AutoencoderConfig,
        kept: (DType, &Device),
    ) -> std::result::Result<Self, EngineError> {
        let files = component_files(&directory.join("vae"))?;
        let name = |name: &str| Some(canonical(&format!("vae.{name}")));
        let decoder = VaeConfig { block_out_channels: config.decoder_widths.clone(), ..config.vae.clone() };
        let (decoder, decoder_bytes) = build_from(&files, kept, name, |vb| VaeDecoder::new(&decoder, &laid_out(vb).pp("vae")))?;
        let (latents, encoder_bytes) = match config.kind {
            Kind::Plain => {
                let (encoder, bytes) = build_from(&files, kept, name, |vb| {
                    let encodes = vb.contains_tensor("vae.encoder.conv_in.weight");
                    encodes.then(|| VaeEncoder::new(&config.vae, &laid_out(vb).pp("vae"))).transpose()
                })?;
                (Latents::Plain(encoder), bytes)
            }
            Kind::Normalised => {
                let (encoder, bytes) =
                    build_from(&files, kept, name, |vb| VaeEncoder::new(&config.vae, &laid_out(vb).pp("vae")))?;
                (Latents::Normed(NormedLatents::read(encoder, &files, config, (kept.1, name))?), bytes)
            }
        };
        let token_px = config.token_px() as u32;
        Ok(Self { decoder, latents, token_px, device: kept.1.clone(), bytes: decoder_bytes + encoder_bytes })
    }

    /// Of its tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `latents`: (1, C, H, W), f32, as the loop has them. Returns the image, f32 around -1 to 1; in bands it is the same in a third of the memory.
    pub(super) fn decode(&self, latents: &Tensor, is_banded: bool) -> Result<Tensor> {
        let latents = match &self.latents {
            Latents::Plain(_) => latents.clone(),
            Latents::Normed(normed) => normed.undone(latents)?,
        };
        if is_banded { self.decoder.decode_in_bands(&latents) } else { self.decoder.decode(&latents) }
    }

    /// `pixels`: (1, 3, H, W), f32 from -1 to 1, both sides multiples of a token's. What they may be in latents of the loop of a plain one.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the files have no encoder; or when there is no memory.
    pub(super) fn moments(&self, pixels: &Tensor) -> std::result::Result<Moments, EngineError> {
        let encoder = match &self.latents {
            Latents::Plain(encoder) => encoder.as_ref(),
            Latents::Normed(normed) => Some(&normed.encoder),
        };
        let Some(encoder) = encoder else {
            let problem = "this model's VAE has no encoder: it cannot start from an image".into();
            return Err(EngineError::Request { field: "init_image", problem });
        };
        Ok(encoder.encode(pixels)?)
    }

    /// `image` as the transformer's tokens, in the size that [`prepared`] gives it.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the image is too small or too long, or the model is shown none; or there is no memory.
    pub(super) fn encode(&self, image: &RgbImage) -> std::result::Result<Reference, EngineError> {
        let refused = |problem| EngineError::Request { field: "images", problem };
        let Latents::Normed(NormedLatents { encoder, mean, deviation }) = &self.latents else {
            return Err(refused("this model is shown none".to_owned()));
        };
        let image = prepared(image, self.token_px).map_err(refused)?;
        let grid = Grid::of_image(image.width(), image.height(), self.token_px as usize)?;
        let pixels = to_pixels(image.as_raw(), image.width() as usize, image.height() as usize, &self.device)?;
        let tokens = pack(&encoder.encode(&pixels)?.mean)?;
        let tokens = tokens.broadcast_sub(mean)?.broadcast_div(deviation)?;
        Ok(Reference { tokens, grid })
    }
}

impl NormedLatents {
    fn read(
        encoder: VaeEncoder,
        files: &[PathBuf],
        config: &AutoencoderConfig,
        (device, name): (&Device, impl Fn(&str) -> Option<String>),
    ) -> std::result::Result<Self, EngineError> {
        let channels = 4 * config.vae.latent_channels;
        let ([mean, variance], _) = build_from(files, (DType::F32, device), name, |vb| {
            Ok([vb.get(channels, "vae.bn.running_mean")?, vb.get(channels, "vae.bn.running_var")?])
        })?;
        Ok(Self { encoder, mean, deviation: (variance + config.eps)?.sqrt()? })
    }

    /// `latents`: (1, 4·C, H, W), normed. Returns (1, C, 2·H, 2·W), as the autoencoder has them.
    fn undone(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = latents.dims4()?;
        let by_channel = |values: &Tensor| values.reshape((1, channels, 1, 1));
        let latents = latents.broadcast_mul(&by_channel(&self.deviation)?)?.broadcast_add(&by_channel(&self.mean)?)?;
        let patches = latents.reshape(&[batch, channels / 4, 2, 2, height, width])?;
        patches.permute([0, 1, 4, 2, 5, 3])?.reshape((batch, channels / 4, 2 * height, 2 * width))
    }
}

fn epsilon() -> f64 {
    1e-4
}
