//! The names that Stable Diffusion 1 gave its tensors before diffusers: single-file checkpoints and many LoRA files have them.
//!
//! The correspondence is that of diffusers' `scripts/convert_original_stable_diffusion_to_diffusers.py`.

use std::collections::{BTreeMap, BTreeSet};

/// Where the blocks of one UNet are, in both spellings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// diffusers' name, such as `down_blocks.0.resnets.1`.
    new: String,
    /// The first release's, such as `input_blocks.2.0`.
    old: String,
    parts: Parts,
}

/// How the parts of a block are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    /// By other names in each spelling.
    Residual,
    /// Alike in both.
    Alike,
    /// There are none: it is one layer.
    None,
}

/// Parts of a residual block: diffusers' name, the old one.
const RESIDUAL: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

const OUTSIDE: [(&str, &str); 7] = [
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

impl Layout {
    /// `layers_per_block`: residual blocks of each level on the way down; there is one more on the way up. `attention_up`: for each
    /// level on the way up, from the bottom, whether it has attention.
    pub(super) fn new(layers_per_block: &[usize], attention_up: &[bool]) -> Self {
        let mut blocks = Vec::new();
        let mut add = |new: String, old: String, parts| blocks.push(Block { new, old, parts });
        for (new, old) in OUTSIDE {
            add(new.to_owned(), old.to_owned(), Parts::None);
        }
        for (number, (new, parts)) in
            [("resnets.0", Parts::Residual), ("attentions.0", Parts::Alike), ("resnets.1", Parts::Residual)]
                .into_iter()
                .enumerate()
        {
            add(format!("mid_block.{new}"), format!("middle_block.{number}"), parts);
        }
        // On the way down a level ends with its downsampling, and before the first there is one convolution.
        let mut start = 0;
        for (level, layers) in layers_per_block.iter().enumerate() {
            for layer in 0..*layers {
                let new = format!("down_blocks.{level}");
                let old = format!("input_blocks.{}", start + 1 + layer);
                add(format!("{new}.resnets.{layer}"), format!("{old}.0"), Parts::Residual);
                add(format!("{new}.attentions.{layer}"), format!("{old}.1"), Parts::Alike);
            }
            let down = format!("input_blocks.{}.0.op", start + 1 + layers);
            add(format!("down_blocks.{level}.downsamplers.0.conv"), down, Parts::None);
            start += layers + 1;
        }
        start = 0;
        for (level, (layers, has_attention)) in layers_per_block.iter().rev().zip(attention_up).enumerate() {
            for layer in 0..=*layers {
                let new = format!("up_blocks.{level}");
                let old = format!("output_blocks.{}", start + layer);
                add(format!("{new}.resnets.{layer}"), format!("{old}.0"), Parts::Residual);
                if *has_attention {
                    add(format!("{new}.attentions.{layer}"), format!("{old}.1"), Parts::Alike);
                }
            }
            // The last of its level has it, behind its attention.
            let up = format!("output_blocks.{}.{}.conv", start + layers, if *has_attention { 2 } else { 1 });
            add(format!("up_blocks.{level}.upsamplers.0.conv"), up, Parts::None);
            start += layers + 1;
        }
        Self { blocks }
    }

    /// Reads it off the names of a UNet's modules in diffusers' spelling, such as `down_blocks.0.resnets.1.conv1`.
    pub(super) fn of<'a>(modules: impl Iterator<Item = &'a str>) -> Self {
        let mut resnets: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut levels = BTreeSet::new();
        let mut with_attention = BTreeSet::new();
        for module in modules {
            let mut parts = module.split('.');
            match [parts.next(), parts.next(), parts.next(), parts.next()] {
                [Some("down_blocks"), Some(level), Some("resnets"), Some(resnet)] => {
                    if let Ok(level) = level.parse() {
                        resnets.entry(level).or_default().extend(resnet.parse::<usize>());
                    }
                }
                [Some("up_blocks"), Some(level), Some(part), _] => {
                    levels.extend(level.parse::<usize>());
                    with_attention.extend(level.parse::<usize>().ok().filter(|_| part == "attentions"));
                }
                _ => {}
            }
        }
        let attention_up: Vec<bool> = (0..levels.len()).map(|level| with_attention.contains(&level)).collect();
        let layers: Vec<usize> = resnets.values().map(BTreeSet::len).collect();
        Self::new(&layers, &attention_up)
    }

    /// The old name of a module of the UNet: `mid_block.resnets.0.conv1` is `middle_block.0.in_layers.2`.
    pub(super) fn old_name(&self, module: &str) -> Option<String> {
        self.blocks.iter().find_map(|block| renamed(module, (&block.new, &block.old), block.parts, &|(new, old)| (new, old)))
    }

    /// diffusers' name of what the first release called so.
    pub(super) fn new_name(&self, module: &str) -> Option<String> {
        self.blocks.iter().find_map(|block| renamed(module, (&block.old, &block.new), block.parts, &|(new, old)| (old, new)))
    }
}

/// `module` in the other spelling, if it is the block or lies in it. `turn`: gives a pair of [`RESIDUAL`] as (from, to).
fn renamed(
    module: &str,
    (from, to): (&str, &str),
    parts: Parts,
    turn: &dyn Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Option<String> {
    let tail = module.strip_prefix(from)?;
    match (parts, tail.strip_prefix('.')) {
        (Parts::None, None) => tail.is_empty().then(|| to.to_owned()),
        (Parts::Alike, Some(tail)) => Some(format!("{to}.{tail}")),
        (Parts::Residual, Some(tail)) => {
            let (_, part) = RESIDUAL.into_iter().map(turn).find(|(part, _)| *part == tail)?;
            Some(format!("{to}.{part}"))
        }
        _ => None,
    }
}

/// Parts of the VAE: the old name, diffusers' name.
const VAE: [(&str, &str); 11] = [
    ("norm_out", "conv_norm_out"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
    ("nin_shortcut", "conv_shortcut"),
    ("upsample.conv", "upsamplers.0.conv"),
    ("downsample.conv", "downsamplers.0.conv"),
];

/// diffusers' name of a tensor of the VAE with `levels` levels: `decoder.up.3.block.0.conv1.weight` of four is
/// `decoder.up_blocks.0.resnets.0.conv1.weight`.
pub(super) fn vae_name(old: &str, levels: usize) -> Option<String> {
    let (side, rest) = old.split_once('.')?;
    let renamed = VAE.iter().fold(rest.to_owned(), |name, (old, new)| replaced_part(&name, old, new));
    let mut parts = renamed.splitn(3, '.');
    let first = parts.next()?;
    let level = parts.next();
    let tail = parts.next();
    let block = match (first, level.and_then(|level| level.parse::<usize>().ok()), tail) {
        ("up", Some(level), Some(tail)) => format!("up_blocks.{}.{tail}", levels.checked_sub(level + 1)?),
        ("down", Some(level), Some(tail)) => format!("down_blocks.{level}.{tail}"),
        _ => renamed.clone(),
    };
    Some(format!("{side}.{}", replaced_part(&block, "block", "resnets")))
}

/// What `OpenCLIP` calls a part of a layer, and transformers.
const OPEN_CLIP: [(&str, &str); 7] = [
    ("attn.in_proj_weight", "self_attn.in_proj.weight"),
    ("attn.in_proj_bias", "self_attn.in_proj.bias"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// transformers' name of a tensor of `OpenCLIP`'s text encoder, which Stable Diffusion 2 has in its one file; `self_attn.in_proj` stands for
/// query, key and value, one below the other.
pub(super) fn open_clip_name(old: &str) -> Option<String> {
    let Some(layer) = old.strip_prefix("transformer.resblocks.") else {
        return match old {
            "token_embedding.weight" => Some("embeddings.token_embedding.weight".to_owned()),
            "positional_embedding" => Some("embeddings.position_embedding.weight".to_owned()),
            _ => old.strip_prefix("ln_final.").map(|kind| format!("final_layer_norm.{kind}")),
        };
    };
    let (number, part) = layer.split_once('.')?;
    let (old, new) = OPEN_CLIP.into_iter().find(|(old, _)| part.starts_with(old))?;
    Some(format!("encoder.layers.{number}.{new}{}", &part[old.len()..]))
}

/// What the VAE's attention was called before diffusers 0.17.
const OLD_NAMES: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// One name for what different versions of diffusers and transformers call differently.
pub(super) fn canonical(name: &str) -> String {
    if name.starts_with("vae.") {
        return OLD_NAMES.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
    }
    match name.split_once('.') {
        // Transformers 5 leaves the prefix out.
        Some((encoder @ ("text_encoder" | "text_encoder_2"), bare))
            if !bare.starts_with("text_model.") && !bare.starts_with("text_projection.") =>
        {
            format!("{encoder}.text_model.{bare}")
        }
        _ => name.to_owned(),
    }
}

/// Replaces `old` where it stands between dots.
fn replaced_part(name: &str, old: &str, new: &str) -> String {
    format!(".{name}.").replace(&format!(".{old}."), &format!(".{new}.")).trim_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5's: four levels, no attention at the bottom.
    fn layout() -> Layout {
        let modules = [
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.resnets.1.conv1",
            "down_blocks.1.resnets.0.conv1",
            "down_blocks.1.resnets.1.conv1",
            "down_blocks.2.resnets.0.conv1",
            "down_blocks.2.resnets.1.conv1",
            "down_blocks.3.resnets.0.conv1",
            "down_blocks.3.resnets.1.conv1",
            "up_blocks.0.resnets.0.conv1",
            "up_blocks.1.attentions.0.norm",
            "up_blocks.2.attentions.0.norm",
            "up_blocks.3.attentions.0.norm",
        ];
        Layout::of(modules.into_iter())
    }

    #[test]
    fn modules_have_the_values_of_the_first_release() {
        assert_eq!(layout(), Layout::new(&[2; 4], &[false, true, true, true]));
        for (new, old) in [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.resnets.1.time_emb_proj", "input_blocks.2.0.emb_layers.1"),
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
            ("down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
            ("down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3"),
            ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
            ("mid_block.resnets.1.norm1", "middle_block.2.in_layers.0"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.3.resnets.2.conv_shortcut", "output_blocks.11.0.skip_connection"),
            ("up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out"),
            ("conv_out", "out.2"),
        ] {
            assert_eq!(layout().old_name(new).as_deref(), Some(old), "{new}");
            assert_eq!(layout().new_name(old).as_deref(), Some(new), "{old}");
        }
        assert_eq!(layout().old_name("encoder_hid_proj.linear_1"), None);
        assert_eq!(layout().new_name("input_blocks.1.0.in_layers.7"), None);
    }

    /// A level of one block moves all that come after it.
    #[test]
    fn levels_may_have_different_numbers_of_blocks() {
        let layout = Layout::new(&[1, 2], &[true, false]);
        for (new, old) in [
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
            ("down_blocks.1.resnets.1.conv1", "input_blocks.4.0.in_layers.2"),
            ("up_blocks.0.resnets.2.conv1", "output_blocks.2.0.in_layers.2"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.1.resnets.1.conv1", "output_blocks.4.0.in_layers.2"),
        ] {
            assert_eq!((layout.old_name(new).as_deref(), layout.new_name(old).as_deref()), (Some(old), Some(new)));
        }
    }

    #[test]
    fn open_clip_has_names_of_its_own() {
        for (old, new) in [
            ("token_embedding.weight", Some("embeddings.token_embedding.weight")),
            ("positional_embedding", Some("embeddings.position_embedding.weight")),
            ("ln_final.bias", Some("final_layer_norm.bias")),
            ("transformer.resblocks.11.attn.in_proj_weight", Some("encoder.layers.11.self_attn.in_proj.weight")),
            ("transformer.resblocks.0.attn.out_proj.bias", Some("encoder.layers.0.self_attn.out_proj.bias")),
            ("transformer.resblocks.3.ln_2.weight", Some("encoder.layers.3.layer_norm2.weight")),
            ("transformer.resblocks.3.mlp.c_proj.weight", Some("encoder.layers.3.mlp.fc2.weight")),
            ("text_projection", None),
            ("logit_scale", None),
        ] {
            assert_eq!(open_clip_name(old).as_deref(), new, "{old}");
        }
    }

    #[test]
    fn the_vae_counts_its_levels_from_the_other_end() {
        for (old, new) in [
            ("decoder.up.3.block.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"),
            ("decoder.up.0.block.2.nin_shortcut.bias", "decoder.up_blocks.3.resnets.2.conv_shortcut.bias"),
            ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
            ("encoder.down.1.downsample.conv.weight", "encoder.down_blocks.1.downsamplers.0.conv.weight"),
            ("decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.mid.block_2.norm1.weight", "decoder.mid_block.resnets.1.norm1.weight"),
            ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
            ("decoder.conv_in.bias", "decoder.conv_in.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(vae_name(old, 4).as_deref(), Some(new), "{old}");
        }
    }
}
