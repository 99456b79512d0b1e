//! Every tensor of the transformer by name, with its shape.

use super::config::TransformerConfig;
use crate::timestep::TIME_FREQUENCIES;
use crate::weights::Shapes;

/// What the names in LoRA files, and in our messages, begin with.
pub(super) const COMPONENT: &str = "transformer";
/// Shift, scale and gate, before attention and before the feed-forward layer.
pub(super) const MODULATIONS: usize = 6;
/// The feed-forward layers' hidden width, in widths.
const MLP_RATIO: usize = 4;

/// Linear layers of a block outside of its modulation, in and out in widths.
const BLOCK_LINEARS: [(&str, usize, usize); 12] = [
    ("attn.to_q", 1, 1),
    ("attn.to_k", 1, 1),
    ("attn.to_v", 1, 1),
    ("attn.to_out.0", 1, 1),
    ("attn.add_q_proj", 1, 1),
    ("attn.add_k_proj", 1, 1),
    ("attn.add_v_proj", 1, 1),
    ("attn.to_add_out", 1, 1),
    ("img_mlp.net.0.proj", 1, MLP_RATIO),
    ("img_mlp.net.2", MLP_RATIO, 1),
    ("txt_mlp.net.0.proj", 1, MLP_RATIO),
    ("txt_mlp.net.2", MLP_RATIO, 1),
];
const BLOCK_NORMS: [&str; 4] = ["attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"];

/// Shapes of all tensors that a transformer of these sizes has, by their full names (`transformer.img_in.weight`).
pub(super) fn shapes(config: &TransformerConfig) -> Shapes {
    let width = config.width();
    let mut shapes = Shapes::new();
    let mut linear = |name: String, inputs: usize, outputs: usize| {
        shapes.insert(format!("{COMPONENT}.{name}.weight"), vec![outputs, inputs]);
        shapes.insert(format!("{COMPONENT}.{name}.bias"), vec![outputs]);
    };
    linear("img_in".into(), config.in_channels, width);
    linear("txt_in".into(), config.joint_attention_dim, width);
    linear("time_text_embed.timestep_embedder.linear_1".into(), TIME_FREQUENCIES, width);
    linear("time_text_embed.timestep_embedder.linear_2".into(), width, width);
    linear("norm_out.linear".into(), width, 2 * width);
    linear("proj_out".into(), width, 4 * config.out_channels);
    for block in 0..config.num_layers {
        let block = format!("transformer_blocks.{block}");
        for modulation in ["img_mod.1", "txt_mod.1"] {
            linear(format!("{block}.{modulation}"), width, MODULATIONS * width);
        }
        for (name, inputs, outputs) in BLOCK_LINEARS {
            linear(format!("{block}.{name}"), inputs * width, outputs * width);
        }
    }
    shapes.insert(format!("{COMPONENT}.txt_norm.weight"), vec![config.joint_attention_dim]);
    for block in 0..config.num_layers {
        for norm in BLOCK_NORMS {
            shapes.insert(format!("{COMPONENT}.transformer_blocks.{block}.{norm}.weight"), vec![config.attention_head_dim]);
        }
    }
    shapes
}

/// Whether a tensor is of the layers whose outputs only depend on the timestep: they are read for a schedule, and not kept.
pub(super) fn depends_on_time(name: &str) -> bool {
    ["_mod.1.", "time_text_embed.", "norm_out."].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_full_model_only_depends_on_time() {
        // Qwen-Image-Edit-2511.
        let config = TransformerConfig {
            in_channels: 64,
            out_channels: 16,
            num_layers: 60,
            num_attention_heads: 24,
            attention_head_dim: 128,
            joint_attention_dim: 3584,
            axes_dims_rope: [16, 56, 56],
            zero_cond_t: true,
        };
        let shapes = shapes(&config);
        let count = |of: &dyn Fn(&str) -> bool| -> usize {
            shapes.iter().filter(|(name, _)| of(name)).map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        let all = count(&|_| true);
        let resident = count(&|name| !depends_on_time(name));
        assert_eq!(shapes.len(), 60 * 32 + 13);
        assert_eq!((all, resident), (20_430_401_088, 13_604_306_496));
    }
}
