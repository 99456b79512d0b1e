//! Models that follow a rectified flow over the latents of an `AutoencoderKL`, from files to pixels: Z-Image and FLUX.1.

mod denoise;
pub mod engine;
pub mod family;
pub mod flux;
mod requests;
mod rope;
pub mod z_image;
