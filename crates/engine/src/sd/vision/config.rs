//! Sizes of a vision transformer, as transformers writes them.

use serde::Deserialize;

use crate::sd::config::{Activation, Sides};
use crate::sd::encoder_layer::LayerConfig;

/// Sizes of a vision transformer.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) layer: LayerConfig,
    pub(crate) layers: usize,
    /// Height and width of the images in pixels.
    pub(crate) image: [usize; 2],
    /// Those of a patch, which divide the image's.
    pub(crate) patch: [usize; 2],
}

impl VisionConfig {
    /// How many patches an image has.
    pub(crate) fn patches(&self) -> usize {
        (self.image[0] / self.patch[0]) * (self.image[1] / self.patch[1])
    }
}

/// A vision transformer as transformers writes it; what is left out has the default of its class.
#[derive(Debug, Deserialize)]
pub(crate) struct WrittenVision {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<Sides>,
    patch_size: Option<Sides>,
    hidden_act: Option<Activation>,
    layer_norm_eps: Option<f64>,
}

/// Where transformers' `ViTConfig` and `CLIPVisionConfig` differ in what they mean by a missing key.
pub(crate) struct Defaults {
    patch_size: usize,
    activation: Activation,
    layer_norm_eps: f64,
}

impl Defaults {
    pub(crate) const VIT: Self = Self { patch_size: 16, activation: Activation::Gelu, layer_norm_eps: 1e-12 };
    pub(crate) const CLIP: Self = Self { patch_size: 32, activation: Activation::QuickGelu, layer_norm_eps: 1e-5 };
}

impl WrittenVision {
    /// # Errors
    /// Says which of the sizes do not fit together.
    pub(crate) fn checked(self, defaults: &Defaults) -> Result<VisionConfig, String> {
        let image = self.image_size.unwrap_or(Sides::Square(224));
        let patch = self.patch_size.unwrap_or(Sides::Square(defaults.patch_size));
        let layer = LayerConfig {
            hidden_size: self.hidden_size.unwrap_or(768),
            intermediate_size: self.intermediate_size.unwrap_or(3072),
            heads: self.num_attention_heads.unwrap_or(12),
            activation: self.hidden_act.unwrap_or(defaults.activation),
            layer_norm_eps: self.layer_norm_eps.unwrap_or(defaults.layer_norm_eps),
            causal: false,
        };
        let [image, patch] = [image, patch].map(|sides| [sides.height(), sides.width()]);
        let divides = |part: usize, whole: usize| part > 0 && whole > 0 && whole.is_multiple_of(part);
        if !divides(layer.heads, layer.hidden_size) {
            return Err(format!("hidden_size {} must be a multiple of num_attention_heads {}", layer.hidden_size, layer.heads));
        }
        if !divides(patch[0], image[0]) || !divides(patch[1], image[1]) {
            return Err(format!("image_size {image:?} must be a multiple of patch_size {patch:?}"));
        }
        match self.num_channels {
            None | Some(3) => Ok(VisionConfig { layer, layers: self.num_hidden_layers.unwrap_or(12), image, patch }),
            Some(channels) => Err(format!("num_channels is {channels}; images have 3")),
        }
    }
}
