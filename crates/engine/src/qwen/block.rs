//! One block of the transformer: text and images attend to each other, each through layers of its own.

use candle_core::{Result, Tensor};

use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::linear::{Joined, Linear};
use super::modulated::{Counts, add_gated, add_gated_modulate, modulate};
use super::modulation::BlockModulation;
use crate::EngineError;
use crate::attention::attend;
use crate::rotary::{Angles, joined_normed_and_turned};

/// Of every norm; diffusers has it in code, not in config.json.
pub(super) const NORM_EPS: f32 = 1e-6;

/// diffusers' `QwenImageTransformerBlock`, without the layers that only depend on time ([`super::conditionings`]).
pub(super) struct Block {
    image: Stream,
    text: Stream,
    heads: usize,
}

/// The layers of one of the two.
struct Stream {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm_query: Tensor,
    norm_key: Tensor,
    up: Linear,
    down: Linear,
}

impl Block {
    pub(super) fn new(
        config: &TransformerConfig,
        files: &TransformerFiles,
        index: usize,
    ) -> std::result::Result<Self, EngineError> {
        let names = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.norm_q", "attn.norm_k", "img_mlp"];
        let image = Stream::new(files, index, names)?;
        let names = [
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
            "attn.norm_added_q",
            "attn.norm_added_k",
            "txt_mlp",
        ];
        Ok(Self { image, text: Stream::new(files, index, names)?, heads: config.num_attention_heads })
    }

    /// `tokens`: (1, S + T, width), the text's first, then the image's, the output's before the references'. Returns the same shape.
    pub(super) fn forward(
        &self,
        tokens: &Tensor,
        counts: Counts,
        conditioning: &BlockModulation,
        (cos, sin): Angles<'_>,
    ) -> Result<Tensor> {
        let Self { text, image, heads } = self;
        let parts = |half: usize| [&conditioning.text[half], &conditioning.output[half], &conditioning.references[half]];
        let attended = {
            let modulated = Joined::new(modulate(tokens, counts, parts(0), NORM_EPS)?, counts.text)?;
            let turned = |layers: [&Linear; 2], norms: [&Tensor; 2]| {
                let joined = modulated.through(layers[0], layers[1])?;
                joined_normed_and_turned(&joined, (counts.text, norms), *heads, NORM_EPS, (cos, sin))
            };
            let query = turned([&text.query, &image.query], [&text.norm_query, &image.norm_query])?;
            let key = turned([&text.key, &image.key], [&text.norm_key, &image.norm_key])?;
            attend(&query, &key, &modulated.through(&text.value, &image.value)?, *heads)?
        };
        let change = Joined::new(attended, counts.text)?.through(&text.out, &image.out)?;
        let [tokens, modulated] = add_gated_modulate((tokens, &change), counts, [parts(0), parts(1)], NORM_EPS)?;
        let inner = Joined::new(modulated, counts.text)?.through_gelu(&text.up, &image.up)?;
        let change = Joined::new(inner, counts.text)?.through(&text.down, &image.down)?;
        add_gated(&tokens, &change, counts, parts(1))
    }
}

impl Stream {
    /// The names of query, key, value, out, both norms and the feed-forward layer.
    fn new(files: &TransformerFiles, index: usize, names: [&str; 7]) -> std::result::Result<Self, EngineError> {
        let block = format!("transformer_blocks.{index}");
        let linear = |name: &str| files.linear(&format!("{block}.{name}"));
        let [query, key, value, out, norm_query, norm_key, mlp] = names;
        Ok(Self {
            query: linear(query)?,
            key: linear(key)?,
            value: linear(value)?,
            out: linear(out)?,
            norm_query: files.tensor(&format!("{block}.{norm_query}.weight"))?,
            norm_key: files.tensor(&format!("{block}.{norm_key}.weight"))?,
            up: linear(&format!("{mlp}.net.0.proj"))?,
            down: linear(&format!("{mlp}.net.2"))?,
        })
    }
}
