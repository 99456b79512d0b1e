//! The vision transformers that look at an image: transformers' `ViTModel` and `CLIPVisionModel`.

pub(crate) mod config;
pub(crate) mod preprocessor;

use candle_core::{IndexOp as _, Result, Tensor};
use candle_nn::VarBuilder;

use self::config::VisionConfig;
use super::encoder_layer::{EncoderLayer, LayerNames};
use crate::layers::{LayerNorm, Linear, layer_norm};

/// transformers' `ViTLayer`.
const VIT: LayerNames = LayerNames {
    layer_norm1: "layernorm_before",
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    out: "attention.output.dense",
    layer_norm2: "layernorm_after",
    fc1: "intermediate.dense",
    fc2: "output.dense",
};

pub(crate) struct Vision {
    /// Of a patch's values to its token: the convolution whose stride is its kernel.
    patches: Linear,
    /// (1, 1, hidden): the token that gathers what the image shows, before all patches.
    class: Tensor,
    /// (1, 1 + patches, hidden).
    positions: Tensor,
    /// CLIP's norm before the layers.
    first_norm: Option<LayerNorm>,
    layers: Vec<EncoderLayer>,
    last_norm: LayerNorm,
    /// Height and width of a patch in pixels.
    patch: [usize; 2],
}

impl Vision {
    /// `vb` stands at the names of `ViTModel` (`embeddings...`).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(crate) fn vit(config: &VisionConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.layer.hidden_size;
        let embeddings = vb.pp("embeddings");
        let bias = embeddings.get(hidden, "patch_embeddings.projection.bias");
        Ok(Self {
            patches: patch_layer(config, Some(bias?), &embeddings.pp("patch_embeddings.projection"))?,
            class: embeddings.get((1, 1, hidden), "cls_token")?,
            positions: embeddings.get((1, 1 + config.patches(), hidden), "position_embeddings")?,
            first_norm: None,
            layers: layers(config, &VIT, &vb.pp("encoder.layer"))?,
            last_norm: layer_norm(hidden, config.layer.layer_norm_eps, &vb.pp("layernorm"))?,
            patch: config.patch,
        })
    }

    /// `vb` stands at the names of `CLIPVisionModel` (`embeddings...`).
    ///
    /// # Errors
    /// As [`Self::vit`].
    pub(crate) fn clip(config: &VisionConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.layer.hidden_size;
        let eps = config.layer.layer_norm_eps;
        let embeddings = vb.pp("embeddings");
        let positions = embeddings.get((1 + config.patches(), hidden), "position_embedding.weight")?;
        Ok(Self {
            patches: patch_layer(config, None, &embeddings.pp("patch_embedding"))?,
            class: embeddings.get(hidden, "class_embedding")?.reshape((1, 1, hidden))?,
            positions: positions.unsqueeze(0)?,
            // Its name is misspelt in every checkpoint.
            first_norm: Some(layer_norm(hidden, eps, &vb.pp("pre_layrnorm"))?),
            layers: layers(config, &LayerNames::CLIP, &vb.pp("encoder.layers"))?,
            last_norm: layer_norm(hidden, eps, &vb.pp("post_layernorm"))?,
            patch: config.patch,
        })
    }

    /// `pixels`: (B, 3, H, W) of the model's own size, in the format and on the device of the weights. Returns (B, hidden), the normed token of
    /// the class.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.last_norm.forward(&self.states(pixels, 0)?.i((.., 0))?.contiguous()?)
    }

    /// Without the last `left_out` layers and without the last norm: (B, 1 + patches, hidden). `pixels`: as [`Self::forward`].
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn states(&self, pixels: &Tensor, left_out: usize) -> Result<Tensor> {
        let (batch, channels, height, width) = pixels.dims4()?;
        let [patch_height, patch_width] = self.patch;
        let rows = height / patch_height;
        let columns = width / patch_width;
        let patches = pixels.reshape((batch, channels, rows, patch_height, columns, patch_width))?;
        // (B, rows, columns, 3, patch height, patch width)
        let patches = patches.permute((0, 2, 4, 1, 3, 5))?.contiguous()?;
        let patches = patches.reshape((batch, rows * columns, channels * patch_height * patch_width))?;
        let tokens = self.patches.forward(&patches)?;
        let class = self.class.broadcast_as((batch, 1, tokens.dim(2)?))?;
        let mut hidden = Tensor::cat(&[&class, &tokens], 1)?.broadcast_add(&self.positions)?;
        if let Some(norm) = &self.first_norm {
            hidden = norm.forward(&hidden)?;
        }
        for layer in &self.layers[..self.layers.len().saturating_sub(left_out)] {
            hidden = layer.forward(&hidden)?;
        }
        Ok(hidden)
    }
}

/// `vb` stands at a convolution's weight, (hidden, 3, patch height, patch width).
fn patch_layer(config: &VisionConfig, bias: Option<Tensor>, vb: &VarBuilder) -> Result<Linear> {
    let [height, width] = config.patch;
    let weight = vb.get((config.layer.hidden_size, 3, height, width), "weight")?;
    Ok(Linear::of(weight.flatten_from(1)?, bias))
}

fn layers(config: &VisionConfig, names: &LayerNames, vb: &VarBuilder) -> Result<Vec<EncoderLayer>> {
    (0..config.layers).map(|index| EncoderLayer::new(config.layer, names, &vb.pp(index))).collect()
}
