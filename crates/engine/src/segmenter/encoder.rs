//! The encoder of a Segformer (Xie et al. 2021): stages of transformer layers over ever fewer places.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module as _, VarBuilder, conv2d};

use super::config::StageConfig;
use crate::attention::attend;
use crate::layers::{LayerNorm, Linear, layer_norm, linear, transposed};

/// torch's own: transformers' code gives its norms none, whatever `layer_norm_eps` in `config.json` says.
const EPS: f64 = 1e-5;
/// Side of the kernel of [`Positions`].
const KERNEL: usize = 3;

/// One stage: patches of what the stage before gives, layers, a norm.
pub(super) struct Stage {
    patches: Conv2d,
    patch_norm: LayerNorm,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl Stage {
    /// `vb` stands at the names of `SegformerEncoder`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(index: usize, config: &StageConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let patches = vb.pp("patch_embeddings").pp(index);
        let overlapping = Conv2dConfig { padding: config.patch / 2, stride: config.stride, ..Conv2dConfig::default() };
        let layers = vb.pp("block").pp(index);
        Ok(Self {
            patches: conv2d(config.in_channels, hidden, config.patch, overlapping, patches.pp("proj"))?,
            patch_norm: layer_norm(hidden, EPS, &patches.pp("layer_norm"))?,
            layers: (0..config.layers).map(|layer| Layer::new(config, &layers.pp(layer))).collect::<Result<_>>()?,
            norm: layer_norm(hidden, EPS, &vb.pp("layer_norm").pp(index))?,
        })
    }

    /// `images`: (B, in, H, W). Returns (B, hidden, H', W'), the sides of [`StageConfig::side`].
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(images)?;
        let (batch, channels, height, width) = patches.dims4()?;
        let mut hidden = self.patch_norm.forward(&tokens(&patches)?)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, [height, width])?;
        }
        transposed(&self.norm.forward(&hidden)?)?.reshape((batch, channels, height, width))
    }
}

/// (B, C, H, W) to (B, H·W, C), in order.
pub(super) fn tokens(images: &Tensor) -> Result<Tensor> {
    transposed(&images.flatten_from(2)?)
}

/// Attention, then two linear layers around a convolution, each behind a norm and beside a residual.
struct Layer {
    attention_norm: LayerNorm,
    attention: Attention,
    mlp_norm: LayerNorm,
    first: Linear,
    positions: Positions,
    second: Linear,
}

impl Layer {
    fn new(config: &StageConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let inner = hidden * config.mlp_ratio;
        let mlp = vb.pp("mlp");
        Ok(Self {
            attention_norm: layer_norm(hidden, EPS, &vb.pp("layer_norm_1"))?,
            attention: Attention::new(config, &vb.pp("attention"))?,
            mlp_norm: layer_norm(hidden, EPS, &vb.pp("layer_norm_2"))?,
            first: linear(hidden, inner, mlp.pp("dense1"))?,
            positions: Positions::new(inner, &mlp.pp("dwconv.dwconv"))?,
            second: linear(inner, hidden, mlp.pp("dense2"))?,
        })
    }

    /// (B, height·width, hidden) to the same.
    fn forward(&self, hidden: &Tensor, sides: [usize; 2]) -> Result<Tensor> {
        let hidden = self.attention.add_to(hidden, &self.attention_norm.forward(hidden)?, sides)?;
        let inner = self.first.forward(&self.mlp_norm.forward(&hidden)?)?;
        self.second.add_to(&hidden, &self.positions.forward(&inner, sides)?.gelu_erf()?)
    }
}

/// Attention of all places over fewer of them.
struct Attention {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    reduction: Option<(Conv2d, LayerNorm)>,
}

impl Attention {
    fn new(config: &StageConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let side = config.reduction;
        let own = vb.pp("self");
        let apart = Conv2dConfig { stride: side, ..Conv2dConfig::default() };
        let reduction = (side > 1).then(|| {
            Ok::<_, candle_core::Error>((
                conv2d(hidden, hidden, side, apart, own.pp("sr"))?,
                layer_norm(hidden, EPS, &own.pp("layer_norm"))?,
            ))
        });
        Ok(Self {
            heads: config.heads,
            query: linear(hidden, hidden, own.pp("query"))?,
            key: linear(hidden, hidden, own.pp("key"))?,
            value: linear(hidden, hidden, own.pp("value"))?,
            out: linear(hidden, hidden, vb.pp("output.dense"))?,
            reduction: reduction.transpose()?,
        })
    }

    /// `before` + what it makes of `hidden`, both (B, height·width, hidden).
    fn add_to(&self, before: &Tensor, hidden: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
        let seen = match &self.reduction {
            Some((convolution, norm)) => {
                let (batch, _, channels) = hidden.dims3()?;
                let images = transposed(hidden)?.reshape((batch, channels, height, width))?;
                norm.forward(&tokens(&convolution.forward(&images)?)?)?
            }
            None => hidden.clone(),
        };
        let query = self.query.forward(hidden)?;
        let attended = attend(&query, &self.key.forward(&seen)?, &self.value.forward(&seen)?, self.heads)?;
        self.out.add_to(before, &attended)
    }
}

/// A convolution of each channel by itself, from which the layers know where a place lies: the network has no other positions.
struct Positions {
    /// (C,) of each place of the kernel, row by row. candle convolves such channels one after another, and takes long for hundreds of them.
    taps: Vec<Tensor>,
    bias: Tensor,
}

impl Positions {
    fn new(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((channels, 1, KERNEL, KERNEL), "weight")?.reshape((channels, KERNEL * KERNEL))?;
        let taps = (0..KERNEL * KERNEL).map(|tap| weight.narrow(1, tap, 1)?.flatten_all()?.contiguous());
        Ok(Self { taps: taps.collect::<Result<_>>()?, bias: vb.get(channels, "bias")? })
    }

    /// (B, height·width, C) to the same, with zeros around the image.
    fn forward(&self, hidden: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
        let (batch, places, channels) = hidden.dims3()?;
        let images = hidden.reshape((batch, height, width, channels))?;
        let border = KERNEL / 2;
        let images = images.pad_with_zeros(1, border, border)?.pad_with_zeros(2, border, border)?;
        let mut sum = self.bias.broadcast_as((batch, height, width, channels))?;
        for (tap, weight) in self.taps.iter().enumerate() {
            let seen = images.narrow(1, tap / KERNEL, height)?.narrow(2, tap % KERNEL, width)?;
            sum = (sum + seen.broadcast_mul(weight)?)?;
        }
        sum.reshape((batch, places, channels))
    }
}
