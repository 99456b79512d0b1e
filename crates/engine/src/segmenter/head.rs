//! The decode head of a Segformer: what all stages found, joined at the sides of the first one, and a score for each label.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::SegmenterConfig;
use super::encoder::tokens;
use crate::layers::{Linear, linear, transposed};

/// torch's own of a batch norm.
const EPS: f64 = 1e-5;

pub(super) struct Head {
    /// Of each stage: its channels to the head's, and what the layer that joins the stages makes of them.
    stages: Vec<(Linear, Linear)>,
    /// The batch norm with the statistics that were learned: (1, C, 1, 1).
    scale: Tensor,
    shift: Tensor,
    classifier: Linear,
}

impl Head {
    /// `vb` stands at the names of `SegformerDecodeHead`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &SegmenterConfig, vb: &VarBuilder) -> Result<Self> {
        let channels = config.decoder_hidden_size;
        let count = config.stages.len();
        let fuse = vb.get((channels, channels * count), "linear_fuse.weight")?;
        let stages = config.stages.iter().enumerate().map(|(index, stage)| {
            let own = linear(stage.hidden_size, channels, vb.pp("linear_c").pp(index).pp("proj"))?;
            // The last stage comes first.
            let joined = fuse.narrow(1, (count - 1 - index) * channels, channels)?.contiguous()?;
            Ok((own, Linear::of(joined, None)))
        });
        let norm = vb.pp("batch_norm");
        let variance = norm.get(channels, "running_var")?;
        let scale = (norm.get(channels, "weight")? / (variance + EPS)?.sqrt()?)?;
        let shift = (norm.get(channels, "bias")? - (norm.get(channels, "running_mean")? * &scale)?)?;
        let by_channel = |values: Tensor| values.reshape((1, channels, 1, 1));
        Ok(Self {
            stages: stages.collect::<Result<_>>()?,
            scale: by_channel(scale)?,
            shift: by_channel(shift)?,
            classifier: linear(channels, config.labels.len(), vb.pp("classifier"))?,
        })
    }

    /// `found`: of each stage (B, its channels, its sides). Returns (B, labels, H, W), of the first stage's sides.
    ///
    /// The layer that joins the stages is linear and has no bias, so each is joined before it is enlarged: less work, and the same sum.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn forward(&self, found: &[Tensor]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for ((own, joined), found) in self.stages.iter().zip(found) {
            let (batch, _, height, width) = found.dims4()?;
            let part = transposed(&joined.forward(&own.forward(&tokens(found)?)?)?)?;
            let part = part.reshape((batch, part.dim(1)?, height, width))?;
            sum = Some(match sum {
                None => part,
                Some(sum) => {
                    let (_, _, height, width) = sum.dims4()?;
                    (part.upsample_bilinear2d(height, width, false)? + sum)?
                }
            });
        }
        let sum = sum.ok_or_else(|| candle_core::Error::msg("a segmenter has no stages"))?;
        let hidden = sum.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?.relu()?;
        let (batch, _, height, width) = hidden.dims4()?;
        let scores = transposed(&self.classifier.forward(&tokens(&hidden)?)?)?;
        scores.reshape((batch, scores.dim(1)?, height, width))
    }
}
