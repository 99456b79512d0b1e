//! A plain row of convolutions, enlarged at its end alone: Real-ESRGAN's `SRVGGNetCompact` (realesr-general-x4v3 and others).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::pixel_shuffle;

use crate::layers::{Conv, conv};
use crate::weights::Shapes;

/// Red, green and blue.
const CHANNELS: usize = 3;

/// The sizes of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CompactConfig {
    features: usize,
    /// Convolutions, the first and the last among them.
    convs: usize,
    factor: usize,
}

impl CompactConfig {
    /// Of the tensors of a file; none: they are another network's.
    pub(super) fn of(shapes: &Shapes) -> Option<Self> {
        let features = *shapes.get("body.0.weight")?.first()?;
        shapes.get("body.1.weight").filter(|slopes| slopes.len() == 1)?;
        let convs = (0..shapes.len()).take_while(|index| shapes.contains_key(&format!("body.{}.weight", 2 * index))).count();
        let out_channels = *shapes.get(&format!("body.{}.weight", 2 * convs.checked_sub(1)?))?.first()?;
        Some(Self { features, convs, factor: (out_channels / CHANNELS).isqrt() })
    }

    pub(super) fn factor(&self) -> usize {
        self.factor
    }

    /// How far from a pixel of the image those may lie that decide it.
    pub(super) fn receptive_px(&self) -> u32 {
        self.convs as u32
    }
}

pub(super) struct Compact {
    /// Each with the slopes below 0 of what follows it, (1, features, 1, 1).
    inner: Vec<(Conv, Tensor)>,
    last: Conv,
    factor: usize,
}

impl Compact {
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &CompactConfig, vb: &VarBuilder) -> Result<Self> {
        let CompactConfig { features, convs, factor } = *config;
        let body = vb.pp("body");
        let inner = (0..convs - 1).map(|index| {
            let in_channels = if index == 0 { CHANNELS } else { features };
            let slopes = body.get(features, &format!("{}.weight", 2 * index + 1))?;
            Ok((conv(in_channels, features, 3, 1, body.pp(2 * index))?, slopes.reshape((1, features, 1, 1))?))
        });
        Ok(Self {
            inner: inner.collect::<Result<_>>()?,
            last: conv(features, CHANNELS * factor * factor, 3, 1, body.pp(2 * (convs - 1)))?,
            factor,
        })
    }

    /// `images`: (B, 3, H, W), 0 to 1. Returns (B, 3, factor·H, factor·W), around 0 to 1.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        let mut hidden = images.clone();
        for (conv, slopes) in &self.inner {
            hidden = prelu(&conv.forward(&hidden)?, slopes)?;
        }
        let added = pixel_shuffle(&self.last.forward(&hidden)?, self.factor)?;
        added + images.upsample_nearest2d(self.factor * height, self.factor * width)?
    }
}

/// x where it is above 0, else x times the slope of its channel, which is any number.
fn prelu(hidden: &Tensor, slopes: &Tensor) -> Result<Tensor> {
    let below = hidden.minimum(&hidden.zeros_like()?)?;
    hidden.relu()? + below.broadcast_mul(slopes)?
}
