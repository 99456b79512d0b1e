//! A linear layer with whole or 8-bit weights, and with LoRA matrices next to them where they cannot be merged.

use std::cell::OnceCell;

use candle_core::{Result, Tensor};

use crate::device::{Fp8Layer, Fp8Tokens};
use crate::fp8::{Fp8Weight, forward_whole};
use crate::layers;

/// A layer over the last dimension of (1, T, in).
pub(super) struct Linear {
    weight: Weight,
    /// Down (rank, in) and up (out, rank) matrices; alpha and scale are in the latter.
    low_rank: Option<(Tensor, Tensor)>,
}

enum Weight {
    Whole(layers::Linear),
    /// e4m3 values, multiplied as they are where the device does that, else made whole while they are used.
    Fp8Weight {
        /// (out, in).
        bits: Tensor,
        /// What the products are multiplied by: (out,) or (1,), f32.
        scale: Tensor,
        /// (out,).
        bias: Tensor,
        fp8: Option<Fp8Weight>,
    },
}

impl Linear {
    pub(super) fn full_precision(weight: Tensor, bias: Tensor) -> Self {
        Self { weight: Weight::Whole(layers::Linear::of(weight, Some(bias))), low_rank: None }
    }

    /// `bits`, `scale` and `bias` of the weight; `beside`: down and up matrices.
    pub(super) fn fp8(
        (bits, scale, bias): (Tensor, Tensor, Tensor),
        low_rank: Option<(Tensor, Tensor)>,
        fp8: Option<Fp8Weight>,
    ) -> Self {
        Self { weight: Weight::Fp8Weight { bits, scale, bias, fp8 }, low_rank }
    }

    /// `input`: (1, T, in). Returns (1, T, out), in the same format.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let output = match &self.weight {
            Weight::Whole(linear) => linear.forward(input)?,
            Weight::Fp8Weight { bits, scale, bias, fp8 } => {
                let tokens = input.squeeze(0)?;
                let output = match fp8 {
                    Some(fp8) => fp8.forward(&tokens, Fp8Layer { bits, scale, bias })?,
                    None => forward_whole(&tokens, bits, scale, bias)?,
                };
                output.unsqueeze(0)?
            }
        };
        match &self.low_rank {
            Some(low_rank) => output + low_rank_output(low_rank, input)?,
            None => Ok(output),
        }
    }
}

/// What matrices next to a weight, down and up, add: (1, T, out).
fn low_rank_output((down, up): &(Tensor, Tensor), input: &Tensor) -> Result<Tensor> {
    let lower = layers::Linear::of(down.clone(), None).forward(input)?;
    layers::Linear::of(up.clone(), None).forward(&lower)
}

/// What the layers of text and image get: (1, S + T, in), the text's S tokens first.
pub(super) struct Joined {
    tokens: Tensor,
    text: Tensor,
    image: Tensor,
    /// All tokens in 8 bits, once a layer asks for them.
    rounded: OnceCell<Fp8Tokens>,
}

impl Joined {
    pub(super) fn new(tokens: Tensor, text_tokens: usize) -> Result<Self> {
        let text = tokens.narrow(1, 0, text_tokens)?.contiguous()?;
        let image = tokens.narrow(1, text_tokens, tokens.dim(1)? - text_tokens)?.contiguous()?;
        Ok(Self { tokens, text, image, rounded: OnceCell::new() })
    }

    /// What the text's layer makes of the text, and behind it what the image's makes of the image: (1, S + T, out).
    pub(super) fn through(&self, text: &Linear, image: &Linear) -> Result<Tensor> {
        self.run([text, image], false)
    }

    /// gelu of [`Self::through`]: the one with tanh.
    pub(super) fn through_gelu(&self, text: &Linear, image: &Linear) -> Result<Tensor> {
        self.run([text, image], true)
    }

    fn run(&self, layers: [&Linear; 2], gelu: bool) -> Result<Tensor> {
        match (&layers[0].weight, &layers[1].weight) {
            // Whole weights have LoRAs merged.
            (Weight::Whole(text), Weight::Whole(image)) => {
                layers::Linear::joined([(text, &self.text), (image, &self.image)], gelu)
            }
            (
                Weight::Fp8Weight { bits, scale, bias, fp8: Some(fp8) },
                Weight::Fp8Weight { bits: other, scale: other_scale, bias: other_bias, fp8: Some(_) },
            ) if bits.dims() == other.dims() && layers[0].low_rank.is_some() == layers[1].low_rank.is_some() => {
                let low_rank = self.low_rank(layers)?;
                let layers = [Fp8Layer { bits, scale, bias }, Fp8Layer { bits: other, scale: other_scale, bias: other_bias }];
                let output = fp8.joined(self.rounded(fp8)?, layers, gelu && low_rank.is_none())?.unsqueeze(0)?;
                match low_rank {
                    Some(low_rank) if gelu => (output + low_rank)?.gelu(),
                    Some(low_rank) => output + low_rank,
                    None => Ok(output),
                }
            }
            _ => {
                let output = Tensor::cat(&[layers[0].forward(&self.text)?, layers[1].forward(&self.image)?], 1)?;
                if gelu { output.gelu() } else { Ok(output) }
            }
        }
    }

    fn rounded(&self, fp8: &Fp8Weight) -> Result<&Fp8Tokens> {
        if let Some(rounded) = self.rounded.get() {
            return Ok(rounded);
        }
        let rounded = fp8.round(&self.tokens.squeeze(0)?, self.text.dim(1)?)?;
        Ok(self.rounded.get_or_init(|| rounded))
    }

    /// What matrices next to the weights add: (1, S + T, out). `None` where there are none.
    fn low_rank(&self, layers: [&Linear; 2]) -> Result<Option<Tensor>> {
        let [Some(text), Some(image)] = layers.map(|layer| layer.low_rank.as_ref()) else { return Ok(None) };
        let [(text_down, text_up), (image_down, image_up)] = [text, image];
        if text_down.dims() == image_down.dims() {
            let of = |weight: &Tensor| layers::Linear::of(weight.clone(), None);
            let lower = layers::Linear::joined([(&of(text_down), &self.text), (&of(image_down), &self.image)], false)?;
            let lower = Self::new(lower, self.text.dim(1)?)?;
            return layers::Linear::joined([(&of(text_up), &lower.text), (&of(image_up), &lower.image)], false).map(Some);
        }
        Tensor::cat(&[low_rank_output(text, &self.text)?, low_rank_output(image, &self.image)?], 1).map(Some)
    }
}
