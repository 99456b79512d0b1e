//! Residual in residual dense blocks: ESRGAN's and Real-ESRGAN's `RRDBNet` (Wang et al. 2018, arXiv 1809.00219; 2021, arXiv 2107.10833).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::pixel_unshuffle;

use crate::activations::leaky_relu;
use crate::layers::{Conv, conv};
use crate::weights::Shapes;

/// What a dense block and a block of them add is multiplied by.
const RESIDUAL: f64 = 0.2;
const DENSE_BLOCKS: usize = 3;
const CONVS: usize = 5;
/// Of the leaky `ReLU`.
const SLOPE: f64 = 0.2;
/// Red, green and blue.
const CHANNELS: usize = 3;
/// Real-ESRGAN's model for 2 times looks at squares of so many pixels a side as at one.
const UNSHUFFLED: usize = 2;

/// The sizes of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RrdbConfig {
    /// Whether it looks at squares of 2 by 2 pixels.
    unshuffles: bool,
    features: usize,
    /// Channels that each convolution of a dense block adds.
    growth: usize,
    blocks: usize,
    /// How often the sides are doubled.
    doublings: usize,
}

impl RrdbConfig {
    /// Of the tensors of a file, by our names; none: they are another network's.
    pub(super) fn of(shapes: &Shapes) -> Option<Self> {
        let [features, in_channels, ..] = shapes.get("conv_first.weight")?[..] else { return None };
        let growth = *shapes.get("body.0.rdb1.conv1.weight")?.first()?;
        let has = |name: String| shapes.contains_key(&name);
        Some(Self {
            unshuffles: in_channels == CHANNELS * UNSHUFFLED * UNSHUFFLED,
            features,
            growth,
            blocks: (0..shapes.len()).take_while(|block| has(format!("body.{block}.rdb1.conv1.weight"))).count(),
            doublings: (1..=shapes.len()).take_while(|number| has(format!("conv_up{number}.weight"))).count(),
        })
    }

    /// By how much it enlarges; 0 where that is less than once.
    pub(super) fn factor(&self) -> usize {
        let enlarged = 1_usize.checked_shl(self.doublings as u32).unwrap_or(0);
        if self.unshuffles { enlarged / UNSHUFFLED } else { enlarged }
    }

    /// Both sides of what it looks at are multiples of it.
    pub(super) fn multiple_px(&self) -> u32 {
        if self.unshuffles { UNSHUFFLED as u32 } else { 1 }
    }

    /// How far from a pixel of the image those may lie that decide it.
    pub(super) fn receptive_px(&self) -> u32 {
        // One pixel a convolution. Behind each doubling a pixel is half as wide: three more hold those of all of them.
        let convs = (self.blocks * DENSE_BLOCKS * CONVS + 2 + 3) as u32;
        convs * self.multiple_px()
    }
}

pub(super) struct Rrdb {
    unshuffles: bool,
    conv_first: Conv,
    body: Vec<Block>,
    conv_body: Conv,
    ups: Vec<Conv>,
    conv_hr: Conv,
    conv_last: Conv,
}

struct Block(Vec<Dense>);

struct Dense(Vec<Conv>);

impl Rrdb {
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &RrdbConfig, vb: &VarBuilder) -> Result<Self> {
        let RrdbConfig { unshuffles, features, doublings, blocks, .. } = *config;
        let in_channels = if unshuffles { CHANNELS * UNSHUFFLED * UNSHUFFLED } else { CHANNELS };
        let wide = |name: &str| conv(features, features, 3, 1, vb.pp(name));
        Ok(Self {
            unshuffles,
            conv_first: conv(in_channels, features, 3, 1, vb.pp("conv_first"))?,
            body: (0..blocks).map(|block| Block::new(config, &vb.pp("body").pp(block))).collect::<Result<_>>()?,
            conv_body: wide("conv_body")?,
            ups: (1..=doublings).map(|number| wide(&format!("conv_up{number}"))).collect::<Result<_>>()?,
            conv_hr: wide("conv_hr")?,
            conv_last: conv(features, CHANNELS, 3, 1, vb.pp("conv_last"))?,
        })
    }

    /// `images`: (B, 3, H, W), 0 to 1, both sides multiples of [`RrdbConfig::multiple_px`]. Returns (B, 3, factor·H, factor·W), around 0 to 1.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let seen = if self.unshuffles { pixel_unshuffle(images, UNSHUFFLED)? } else { images.clone() };
        let first = self.conv_first.forward(&seen)?;
        let mut hidden = first.clone();
        for block in &self.body {
            hidden = block.forward(&hidden)?;
        }
        hidden = self.conv_body.add_to(&first, &hidden)?;
        for up in &self.ups {
            let (_, _, height, width) = hidden.dims4()?;
            hidden = leaky_relu(&up.forward_enlarged(&hidden, 2 * height, 2 * width)?, SLOPE)?;
        }
        self.conv_last.forward(&leaky_relu(&self.conv_hr.forward(&hidden)?, SLOPE)?)
    }
}

impl Block {
    fn new(config: &RrdbConfig, vb: &VarBuilder) -> Result<Self> {
        let dense = (1..=DENSE_BLOCKS).map(|number| Dense::new(config, &vb.pp(format!("rdb{number}"))));
        dense.collect::<Result<_>>().map(Self)
    }

    fn forward(&self, before: &Tensor) -> Result<Tensor> {
        let mut hidden = before.clone();
        for dense in &self.0 {
            hidden = dense.forward(&hidden)?;
        }
        (hidden * RESIDUAL)? + before
    }
}

impl Dense {
    fn new(RrdbConfig { features, growth, .. }: &RrdbConfig, vb: &VarBuilder) -> Result<Self> {
        let convs = (0..CONVS).map(|index| {
            let out_channels = if index + 1 == CONVS { *features } else { *growth };
            conv(features + index * growth, out_channels, 3, 1, vb.pp(format!("conv{}", index + 1)))
        });
        convs.collect::<Result<_>>().map(Self)
    }

    /// Every convolution looks at what came in and at what all before it have made.
    fn forward(&self, before: &Tensor) -> Result<Tensor> {
        let Some((last, growing)) = self.0.split_last() else { return Ok(before.clone()) };
        let mut all = before.clone();
        for conv in growing {
            all = Tensor::cat(&[&all, &leaky_relu(&conv.forward(&all)?, SLOPE)?], 1)?;
        }
        (last.forward(&all)? * RESIDUAL)? + before
    }
}
