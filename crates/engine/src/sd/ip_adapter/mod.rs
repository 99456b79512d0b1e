//! IP-Adapter (Ye et al. 2023, arXiv 2308.06721): images beside the prompt, which every attention to the text looks at as well.

mod attentions;
pub mod files;
pub(in crate::sd) mod image_encoder;
mod projection;
mod resampler;

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use self::attentions::ImageAttention;
use self::projection::{Projection, ProjectionConfig};
use super::attention::Context;
use super::config::UnetConfig;

/// What an IP-Adapter adds to a UNet: how an image becomes tokens, and what each attention to the text makes of them.
pub(super) struct IpAdapter {
    dtype: DType,
    projection: Projection,
    /// In the order in which a forward pass comes to them.
    attentions: Vec<ImageAttention>,
}

impl IpAdapter {
    /// `vb` stands at the names of the file (`image_proj.proj.weight`, `ip_adapter.1.to_k_ip.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `unet` and `projection` say.
    fn new(unet: &UnetConfig, projection: ProjectionConfig, vb: &VarBuilder) -> Result<Self> {
        let places = attentions::of_unet(unet);
        let attentions = places
            .into_iter()
            .map(|place| ImageAttention::new(unet.cross_attention_dim, place.channels, &vb.pp("ip_adapter").pp(place.number)));
        Ok(Self {
            dtype: vb.dtype(),
            projection: Projection::new(projection, &vb.pp("image_proj"))?,
            attentions: attentions.collect::<Result<_>>()?,
        })
    }

    /// Whether it looks at all states of an image, and not at its one embedding.
    pub(super) fn takes_states(&self) -> bool {
        matches!(self.projection, Projection::Resampler(_))
    }

    /// Tokens of an image.
    pub(super) fn tokens_of_image(&self) -> usize {
        self.projection.tokens()
    }

    /// `seen`: of N images, (N, embedding), or (N, places, hidden) where it takes states. Returns (1, N·tokens, text channels), f32.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn tokens(&self, seen: &Tensor) -> Result<Tensor> {
        let tokens = self.projection.forward(&seen.to_dtype(self.dtype)?)?;
        let (images, each, channels) = tokens.dims3()?;
        tokens.reshape((1, images * each, channels))?.to_dtype(DType::F32)
    }

    /// What each attention looks at besides the text. `tokens`: (B, T, text channels), f32; `scale`: what is seen is multiplied by it.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn contexts(&self, tokens: &Tensor, scale: f64) -> Result<Vec<Context>> {
        let tokens = tokens.to_dtype(self.dtype)?;
        self.attentions.iter().map(|attention| attention.context(&tokens, scale)).collect()
    }
}
