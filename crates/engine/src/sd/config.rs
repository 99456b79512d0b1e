//! Sizes of a Stable Diffusion checkpoint, as its own JSON files state them.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Deserializer};

/// `unet/config.json`, diffusers' `UNet2DConditionModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct UnetConfig {
    pub in_channels: usize,
    /// A ControlNet has none, and no way up.
    #[serde(default)]
    pub out_channels: usize,
    /// Sides of the latents the model was trained on.
    #[serde(default = "sixty_four")]
    pub sample_size: Sides,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<DownBlockType>,
    #[serde(default)]
    pub up_block_types: Vec<UpBlockType>,
    /// Residual blocks on the way down; on the way up there is one more.
    pub layers_per_block: PerBlock,
    /// Width of the text encoder's output.
    pub cross_attention_dim: usize,
    /// In spite of its name the *number* of heads (diffusers keeps the misnomer for old checkpoints).
    pub attention_head_dim: PerBlock,
    /// The number of heads where a checkpoint says it under its right name.
    #[serde(default)]
    pub num_attention_heads: Option<PerBlock>,
    /// Blocks of each transformer: on the way down, and of its last number in the middle.
    #[serde(default = "one")]
    pub transformer_layers_per_block: TransformerLayers,
    /// On the way up, from the innermost; none: as on the way down.
    #[serde(default)]
    pub reverse_transformer_layers_per_block: Option<TransformerLayers>,
    /// Whether there is a block in the middle (Segmind's Vega has none); without one the way up begins where the way down ends.
    #[serde(rename = "mid_block_type", default = "yes", deserialize_with = "is_there")]
    pub has_mid_block: bool,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Of the residual blocks; the transformers have their own.
    #[serde(default = "epsilon")]
    pub norm_eps: f64,
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f64,
    /// Linear layers in place of 1x1 convolutions around the transformers (SD 2).
    #[serde(default)]
    pub use_linear_projection: bool,
    /// Width of the guidance scale's embedding where the model was distilled over it (LCM): then one forward pass is a guided one.
    #[serde(default)]
    pub time_cond_proj_dim: Option<usize>,
    /// What is added to the timestep's embedding (SDXL).
    #[serde(default)]
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Width of the waves of each of the six sizes.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled text and the waves of all six.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
}

impl UnetConfig {
    /// Whether it is one of Stable Diffusion XL, which looks at pooled text and sizes as well.
    #[must_use]
    pub fn is_xl(&self) -> bool {
        self.addition_embed_type == Some(AdditionEmbedType::TextTime)
    }

    /// Blocks of the transformer behind residual block `layer` on the way up, at level `index` counted from the innermost.
    #[must_use]
    pub fn transformer_layers_up(&self, index: usize, layer: usize) -> usize {
        match &self.reverse_transformer_layers_per_block {
            Some(layers) => layers.at(index, layer),
            None => self.transformer_layers_per_block.at(self.block_out_channels.len() - 1 - index, layer),
        }
    }

    /// For each level on the way up, from the bottom: whether it has attention.
    #[must_use]
    pub fn attention_up(&self) -> Vec<bool> {
        self.up_block_types.iter().map(|block| matches!(block, UpBlockType::CrossAttnUpBlock2D)).collect()
    }

    /// Residual blocks on the way down at each level, from the outermost.
    #[must_use]
    pub fn layers(&self) -> Vec<usize> {
        (0..self.block_out_channels.len()).map(|level| self.layers_per_block.at(level)).collect()
    }

    /// What stands next to the latents at its input.
    #[must_use]
    pub fn extra_input(&self) -> ExtraInput {
        match self.in_channels.saturating_sub(self.out_channels) {
            0 => ExtraInput::Nothing,
            channels if channels == self.out_channels => ExtraInput::Image,
            _ => ExtraInput::MaskAndImage,
        }
    }

    /// Attention heads of block `index`, counted from the outermost.
    #[must_use]
    pub fn heads(&self, index: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(index)
    }
}

/// Further channels of a UNet's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtraInput {
    Nothing,
    /// The latents of the image that is edited: instruct-pix2pix (Brooks et al. 2023, arXiv 2211.09800).
    Image,
    /// A mask, and the latents of what it leaves of an image: inpainting.
    MaskAndImage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    CrossAttnDownBlock2D,
    DownBlock2D,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    CrossAttnUpBlock2D,
    UpBlock2D,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// Pooled text, and the sizes of the image as waves.
    TextTime,
}

/// One number for both sides of a square, or height and width.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub enum Sides {
    Square(usize),
    Rectangle([usize; 2]),
}

impl Sides {
    #[must_use]
    pub fn height(self) -> usize {
        match self {
            Self::Square(side) | Self::Rectangle([side, _]) => side,
        }
    }

    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Square(side) | Self::Rectangle([_, side]) => side,
        }
    }
}

/// One number for all blocks, or one a block.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    All(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    /// The number of block `index`; the last one stands for those a list leaves out.
    #[must_use]
    pub fn at(&self, index: usize) -> usize {
        match self {
            Self::All(number) => *number,
            Self::Each(values) => values.get(index).or(values.last()).copied().unwrap_or(1),
        }
    }
}

/// One number for all transformers, or one a level, or one for each transformer of a level.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum TransformerLayers {
    All(usize),
    Each(Vec<PerBlock>),
}

impl TransformerLayers {
    /// The number of transformer `layer` of level `index`; the last level stands for those a list leaves out.
    #[must_use]
    pub fn at(&self, index: usize, layer: usize) -> usize {
        match self {
            Self::All(number) => *number,
            Self::Each(levels) => levels.get(index).or(levels.last()).map_or(1, |level| level.at(layer)),
        }
    }
}

/// `vae/config.json`, diffusers' `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
pub struct VaeConfig {
    #[serde(default = "three")]
    pub in_channels: usize,
    #[serde(default = "three")]
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Sides in pixels of the images it was trained on.
    #[serde(default = "five_hundred_twelve")]
    pub sample_size: Sides,
    /// Latents are divided by it before decoding.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether f16 is too narrow for it; SDXL's pipeline alone looks at it.
    #[serde(default = "yes")]
    pub force_upcast: bool,
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
}

impl VaeConfig {
    /// Of every norm in it; diffusers has it in code, not in config.json.
    pub(super) const NORM_EPS: f64 = 1e-6;

    /// Latents as the autoencoder itself has them, out of those of the denoising loop.
    pub(super) fn unscaled(&self, latents: &Tensor) -> Result<Tensor> {
        (latents / self.scaling_factor)? + self.shift_factor.unwrap_or_default()
    }

    /// Pixels a latent stands for, along one side: every up block but the last doubles.
    #[must_use]
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// `text_encoder/config.json`, transformers' `CLIPTextModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct TextEncoderConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Tokens of a prompt, its start and end among them.
    #[serde(default = "seventy_seven")]
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f64,
    /// Width of the pooled output, of an encoder that has a projection (`CLIPTextModelWithProjection`).
    #[serde(default = "five_hundred_twelve_wide")]
    pub projection_dim: usize,
    /// The token at whose place the pooled output is taken. 2, which many checkpoints have by mistake, stands for the highest token of a text.
    #[serde(default = "end_of_text")]
    pub eos_token_id: u32,
}

impl TextEncoderConfig {
    /// What older transformers wrote, and SDXL's second encoder has, though the end of a text is another token.
    pub(super) const WRONG_END: u32 = 2;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·sigmoid(1.702·x), of the first CLIP.
    QuickGelu,
    /// The exact one, by the error function.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
}

fn one() -> TransformerLayers {
    TransformerLayers::All(1)
}

/// Whether the key names a class and not null.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<bool, D::Error> {
    Option::<String>::deserialize(deserializer).map(|class| class.is_some())
}

fn five_hundred_twelve_wide() -> usize {
    512
}

/// transformers' own default, CLIP's `<|endoftext|>`.
fn end_of_text() -> u32 {
    49_407
}

fn three() -> usize {
    3
}

fn seventy_seven() -> usize {
    77
}

fn thirty_two() -> usize {
    32
}

fn five_hundred_twelve() -> Sides {
    Sides::Square(512)
}

fn sixty_four() -> Sides {
    Sides::Square(64)
}

fn epsilon() -> f64 {
    1e-5
}

fn scaling_factor() -> f64 {
    0.18215
}

fn yes() -> bool {
    true
}
