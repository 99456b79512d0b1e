//! The transformer: noisy tokens, references and a text in, the velocity of the output's tokens out.

use candle_core::{Error, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};

use super::block::{Block, NORM_EPS};
use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::linear::Linear;
use super::modulated::Counts;
use super::modulation::TimestepConditioning;
use super::rope::Rope;
use crate::EngineError;
use crate::step_cache::FirstBlock;

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
    pub first_block: FirstBlock,
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
        let first = self.first_block(tokens, text, output_tokens, conditioning, rope)?;
        let image = self.last_block(&first, output_tokens, conditioning, rope)?;
        Ok(Prediction { velocity: self.velocity(&image, output_tokens, conditioning)?, first_block: first })
    }

    /// The beginning of [`Self::predict`]; the image's tokens are those of output and references.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn first_block(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        output_tokens: usize,
        conditioning: &TimestepConditioning,
        rope: &Rope,
    ) -> Result<FirstBlock> {
        let text = self.text_in.forward(&rms_norm(&text.contiguous()?, &self.text_norm, NORM_EPS)?)?;
        let before = self.image_in.forward(tokens)?;
        let Some(block) = self.blocks.first() else {
            return Ok(FirstBlock { after: before.clone(), before, text: Some(text) });
        };
        let counts = Counts { text: text.dim(1)?, output: output_tokens };
        let joined = Tensor::cat(&[&text, &before], 1)?;
        let joined = block.forward(&joined, counts, &conditioning.block(0)?, rope.angles())?;
        let text = joined.narrow(1, 0, counts.text)?;
        Ok(FirstBlock { after: joined.narrow(1, counts.text, before.dim(1)?)?, before, text: Some(text) })
    }

    /// All other blocks: the image's tokens behind them.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn last_block(
        &self,
        first: &FirstBlock,
        output_tokens: usize,
        conditioning: &TimestepConditioning,
        rope: &Rope,
    ) -> Result<Tensor> {
        let text = first.text.as_ref().ok_or_else(|| Error::msg("a block without its text"))?;
        let counts = Counts { text: text.dim(1)?, output: output_tokens };
        let mut tokens = Tensor::cat(&[text, &first.after], 1)?;
        for (place, block) in self.blocks.iter().enumerate().skip(1) {
            tokens = block.forward(&tokens, counts, &conditioning.block(place)?, rope.angles())?;
        }
        tokens.narrow(1, counts.text, first.after.dim(1)?)
    }

    /// The end of [`Self::predict`]: (1, output tokens, 4·channels).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn velocity(&self, image: &Tensor, output_tokens: usize, conditioning: &TimestepConditioning) -> Result<Tensor> {
        let output = image.narrow(1, 0, output_tokens)?.contiguous()?;
        let [scale, shift] = conditioning.last()?;
        self.out.forward(&layer_norm(&output, &scale, &shift, NORM_EPS)?)
    }
}
