//! The transformer: noisy tokens, references and a text in, the velocity of the output's tokens out.

use candle_core::{Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};

use super::block::{Block, NORM_EPS};
use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::linear::Linear;
use super::modulation::TimestepConditioning;
use super::rope::Rope;
use crate::EngineError;

/// diffusers' `QwenImageTransformer2DModel`; what only depends on time is in [`TimestepConditioning`].
pub struct Transformer {
    image_in: Linear,
    text_norm: Tensor,
    text_in: Linear,
    blocks: Vec<Block>,
    out: Linear,
}

/// One forward pass at the tokens, stage by stage.
pub struct Prediction {
    /// Text and images after the first block: (1, S, width) and (1, T, width).
    pub first_block: (Tensor, Tensor),
    /// (1, output tokens, 4·channels).
    pub velocity: Tensor,
}

impl Transformer {
    pub(super) fn new(config: &TransformerConfig, files: &TransformerFiles) -> std::result::Result<Self, EngineError> {
        Ok(Self {
            image_in: files.linear("img_in")?,
            text_norm: files.tensor("txt_norm.weight")?,
            text_in: files.linear("txt_in")?,
            blocks: (0..config.num_layers)
                .map(|index| Block::new(config, files, index))
                .collect::<std::result::Result<_, _>>()?,
            out: files.linear("proj_out")?,
        })
    }

    /// `tokens`: (1, T, in), the output's `output_tokens` first, then the references'; `text`: (1, S, joint). Both in the format that is
    /// computed in; `rope` is of the same tokens.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        output_tokens: usize,
        conditioning: &TimestepConditioning,
        rope: &Rope,
    ) -> Result<Prediction> {
        let mut image = self.image_in.forward(tokens)?;
        let mut text = self.text_in.forward(&rms_norm(&text.contiguous()?, &self.text_norm, NORM_EPS)?)?;
        let mut first_block = None;
        for (place, block) in self.blocks.iter().enumerate() {
            (text, image) = block.forward(&text, &image, output_tokens, &conditioning.block(place)?, rope)?;
            first_block.get_or_insert_with(|| (text.clone(), image.clone()));
        }
        let output = image.narrow(1, 0, output_tokens)?.contiguous()?;
        let [scale, shift] = conditioning.last()?;
        let normed = layer_norm(&output, &scale, &shift, NORM_EPS)?;
        Ok(Prediction { first_block: first_block.unwrap_or((text, image)), velocity: self.out.forward(&normed)? })
    }
}
