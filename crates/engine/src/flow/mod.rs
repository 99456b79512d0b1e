//! Models that follow a rectified flow over the latents of an `AutoencoderKL`, from files to pixels: Z-Image, FLUX.1 and FLUX.2 klein.

pub mod autoencoder;
mod denoise;
pub mod engine;
pub mod family;
pub mod flux;
pub mod flux2;
mod from_image;
mod qwen3;
pub mod references;
mod requests;
mod rope;
mod start;
pub mod z_image;
