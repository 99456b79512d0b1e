//! The names that a flow's transformer has in its first release, where layers that stand apart here are one: `ComfyUI` and many LoRA files have them.
//!
//! The correspondence is that of diffusers' `convert_z_image_transformer_checkpoint_to_diffusers`, `convert_flux_transformer_checkpoint_to_diffusers` and
//! `convert_flux2_transformer_checkpoint_to_diffusers`.

pub(super) mod fitting;

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::weights::Shapes;

/// What the names of its tensors begin with.
const COMPONENT: &str = "transformer.";

/// What the names in a transformer's own file may begin with (`ComfyUI`, original releases).
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", "transformer."];

/// Tensors of a model, and where each may be in a file, most likely first.
pub(super) type Places<'a> = Vec<(&'a str, Vec<Place<'a>>)>;
/// A file's name for a tensor, and its rows there, where those are not all.
pub(super) type Place<'a> = (String, Option<&'a [Range<usize>]>);

/// Ours and the first name of what is called otherwise, wherever it stands in a module's name.
type Renamed = &'static [(&'static str, &'static str)];

const Z_IMAGE: Renamed = &[
    (".attention.to_out.0", ".attention.out"),
    (".attention.norm_q", ".attention.q_norm"),
    (".attention.norm_k", ".attention.k_norm"),
    ("all_x_embedder.2-1", "x_embedder"),
    ("all_final_layer.2-1.", "final_layer."),
];

/// FLUX.1 and, with other feed-forward layers, FLUX.2: blocks in which text and image have layers of their own.
const DOUBLE: Renamed = &[
    ("transformer_blocks.", "double_blocks."),
    (".norm1.linear", ".img_mod.lin"),
    (".norm1_context.linear", ".txt_mod.lin"),
    (".attn.to_out.0", ".img_attn.proj"),
    (".attn.to_add_out", ".txt_attn.proj"),
    (".attn.norm_q", ".img_attn.norm.query_norm"),
    (".attn.norm_k", ".img_attn.norm.key_norm"),
    (".attn.norm_added_q", ".txt_attn.norm.query_norm"),
    (".attn.norm_added_k", ".txt_attn.norm.key_norm"),
    (".ff.net.0.proj", ".img_mlp.0"),
    (".ff.net.2", ".img_mlp.2"),
    (".ff_context.net.0.proj", ".txt_mlp.0"),
    (".ff_context.net.2", ".txt_mlp.2"),
    (".ff.linear_in", ".img_mlp.0"),
    (".ff.linear_out", ".img_mlp.2"),
    (".ff_context.linear_in", ".txt_mlp.0"),
    (".ff_context.linear_out", ".txt_mlp.2"),
];

/// FLUX: blocks that both go through as one. FLUX.2's joint layer is one here too.
const SINGLE: Renamed = &[
    ("single_transformer_blocks.", "single_blocks."),
    (".norm.linear", ".modulation.lin"),
    (".attn.norm_q", ".norm.query_norm"),
    (".attn.norm_k", ".norm.key_norm"),
    (".proj_out", ".linear2"),
    (".attn.to_qkv_mlp_proj", ".linear1"),
    (".attn.to_out", ".linear2"),
];

/// FLUX: what stands in no block.
const OUTSIDE: Renamed = &[
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("proj_out", "final_layer.linear"),
];

/// Layers here that were one: how a module's name ends, how the others' do in its place, those of the joint layer, and of its block.
struct Joint {
    first: &'static str,
    all: &'static [&'static str],
    old: &'static str,
    block: (&'static str, &'static str),
}

const JOINT: [Joint; 4] = [
    Joint {
        first: ".attention.to_q",
        all: &[".attention.to_q", ".attention.to_k", ".attention.to_v"],
        old: ".attention.qkv",
        block: ("", ""),
    },
    Joint {
        first: ".attn.to_q",
        all: &[".attn.to_q", ".attn.to_k", ".attn.to_v", ".proj_mlp"],
        old: ".linear1",
        block: ("single_transformer_blocks.", "single_blocks."),
    },
    Joint {
        first: ".attn.to_q",
        all: &[".attn.to_q", ".attn.to_k", ".attn.to_v"],
        old: ".img_attn.qkv",
        block: ("transformer_blocks.", "double_blocks."),
    },
    Joint {
        first: ".attn.add_q_proj",
        all: &[".attn.add_q_proj", ".attn.add_k_proj", ".attn.add_v_proj"],
        old: ".txt_attn.qkv",
        block: ("transformer_blocks.", "double_blocks."),
    },
];

/// FLUX: shift before scale in the first release, after it here.
const LAST_MODULATION: (&str, &str) = ("norm_out.linear", "final_layer.adaLN_modulation.1");

/// Which rows of a layer of the first release are those of a module here, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowSlice {
    /// The module, component included.
    pub(super) module: String,
    pub(super) rows: Vec<Range<usize>>,
}

/// What a model's layers were called, and which of them were one.
#[derive(Debug, Default)]
pub(super) struct OriginalLayers {
    /// The name of each module, component included, that had another.
    names: BTreeMap<String, String>,
    /// Layers that are others here, by the name they had, component included.
    joint: BTreeMap<String, Vec<RowSlice>>,
}

impl OriginalLayers {
    /// `shapes`: of all tensors of the model.
    pub(super) fn of(shapes: &Shapes) -> Self {
        let mut layers = Self::default();
        let modules = shapes.keys().filter_map(|name| name.strip_suffix(".weight")?.strip_prefix(COMPONENT));
        let modules: Vec<&str> = modules.collect();
        let is_flux = modules.iter().any(|module| module.starts_with(SINGLE[0].0));
        let is_z_image = modules.iter().any(|module| module.contains(JOINT[0].first));
        if !is_flux && !is_z_image {
            return layers;
        }
        for module in modules {
            layers.add_joint(shapes, module);
            let renamed = match module {
                _ if is_z_image => Z_IMAGE,
                module if module.starts_with(SINGLE[0].0) => SINGLE,
                module if module.starts_with(DOUBLE[0].0) => DOUBLE,
                _ => OUTSIDE,
            };
            if let Some(old) = renamed_by(renamed, module) {
                layers.names.insert(format!("{COMPONENT}{module}"), format!("{COMPONENT}{old}"));
            }
        }
        layers
    }

    fn add_joint(&mut self, shapes: &Shapes, module: &str) {
        let full = |module: &str| format!("{COMPONENT}{module}");
        if module == LAST_MODULATION.0 {
            let rows =
                shapes.get(&format!("{}.weight", full(module))).and_then(|shape| shape.first()).copied().unwrap_or_default();
            let slice = RowSlice { module: full(module), rows: vec![rows / 2..rows, 0..rows / 2] };
            self.joint.insert(full(LAST_MODULATION.1), vec![slice]);
        }
        for Joint { first, all, old, block: (our_block, old_block) } in &JOINT {
            let Some(rest) = module.strip_suffix(first).and_then(|module| module.strip_prefix(our_block)) else { continue };
            let parts: Vec<String> = all.iter().map(|part| full(&format!("{our_block}{rest}{part}"))).collect();
            if let Some(slices) = one_after_another(shapes, &parts) {
                self.joint.insert(full(&format!("{old_block}{rest}{old}")), slices);
            }
        }
    }

    /// What the rows of a layer of the first release belong to, where that is no layer here.
    pub(super) fn slices(&self, module: &str) -> Option<&[RowSlice]> {
        self.joint.get(module).map(Vec::as_slice)
    }

    /// What a module was called, where that is another name.
    pub(super) fn name(&self, module: &str) -> Option<&str> {
        self.names.get(module).map(String::as_str)
    }

    /// Where the tensor `name` of the model may be in a file of its transformer alone, most likely first: the file's name for it, and its rows there,
    /// where those are not all.
    pub(super) fn places(&self, name: &str) -> Vec<Place<'_>> {
        let Some(own) = name.strip_prefix(COMPONENT) else { return Vec::new() };
        let mut places = vec![(own.to_owned(), None)];
        let Some((module, kind)) = name.rsplit_once('.') else { return places };
        if let Some(old) = self.names.get(module).map(|old| old.trim_start_matches(COMPONENT)) {
            // FLUX's first release calls the weight of a norm its scale.
            places.extend([kind, "scale"].map(|kind| (format!("{old}.{kind}"), None)));
        }
        for (joint, slices) in &self.joint {
            let rows = slices.iter().find(|slice| slice.module == module).map(|slice| slice.rows.as_slice());
            if rows.is_some() {
                places.push((format!("{}.{kind}", joint.trim_start_matches(COMPONENT)), rows));
            }
        }
        places
    }

    /// The shapes of the weights of layers that are none here, and of their biases where they have some.
    pub(super) fn shapes(&self, shapes: &Shapes) -> Shapes {
        let mut joint = Shapes::new();
        for (module, slices) in &self.joint {
            let rows = slices.iter().flat_map(|slice| &slice.rows).map(|rows| rows.end).max().unwrap_or_default();
            for kind in ["weight", "bias"] {
                let first = slices.first().and_then(|slice| shapes.get(&format!("{}.{kind}", slice.module)));
                if let Some(shape) = first {
                    joint.insert(format!("{module}.{kind}"), [&[rows], shape.get(1..).unwrap_or_default()].concat());
                }
            }
        }
        joint
    }
}

/// A name in a transformer's own file without what it begins with, where it begins so.
pub(super) fn bare(name: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// These rows of a tensor, one range behind the other; a single range is read from where it lies.
pub(super) fn rows_of(tensor: &Tensor, rows: &[Range<usize>]) -> Result<Tensor> {
    let parts = rows.iter().map(|rows| tensor.narrow(0, rows.start, rows.len()));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    if let [only] = parts.as_slice() { Ok(only.clone()) } else { Tensor::cat(&parts, 0) }
}

fn renamed_by(renamed: Renamed, module: &str) -> Option<String> {
    let old = renamed.iter().fold(module.to_owned(), |name, (ours, old)| name.replace(ours, old));
    (old != module).then_some(old)
}

/// `None` where one of the modules is missing.
fn one_after_another(shapes: &Shapes, modules: &[String]) -> Option<Vec<RowSlice>> {
    let mut first = 0;
    let slices = modules.iter().map(|module| {
        let rows = *shapes.get(&format!("{module}.weight"))?.first()?;
        let own = first..first + rows;
        first = own.end;
        let slice = RowSlice { module: module.clone(), rows: vec![own] };
        Some(slice)
    });
    slices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(modules: &[(&str, usize)]) -> Shapes {
        modules.iter().map(|(module, rows)| (format!("{COMPONENT}{module}.weight"), vec![*rows, 5])).collect()
    }

    fn rows(layers: &OriginalLayers, module: &str) -> Vec<(String, Vec<Range<usize>>)> {
        let slices = layers.slices(&format!("{COMPONENT}{module}")).unwrap_or_default();
        slices.iter().map(|slice| (slice.module.trim_start_matches(COMPONENT).to_owned(), slice.rows.clone())).collect()
    }

    #[test]
    fn z_images_queries_keys_and_values_were_one_layer() {
        let parts = ["to_q", "to_k", "to_v", "to_out.0"].map(|part| format!("layers.3.attention.{part}"));
        let shapes = shapes(&parts.each_ref().map(|part| (part.as_str(), 6)));
        let layers = OriginalLayers::of(&shapes);
        let expected = [0..6, 6..12, 12..18].into_iter().zip(&parts).map(|(rows, part)| (part.clone(), vec![rows]));
        assert_eq!(rows(&layers, "layers.3.attention.qkv"), expected.collect::<Vec<_>>());
        assert_eq!(
            layers.shapes(&shapes),
            Shapes::from([("transformer.layers.3.attention.qkv.weight".to_owned(), vec![18, 5])])
        );
        assert_eq!(layers.name("transformer.layers.3.attention.to_out.0"), Some("transformer.layers.3.attention.out"));
    }

    #[test]
    fn fluxs_layers_have_their_first_names() {
        let single = "single_transformer_blocks.0";
        let double = "transformer_blocks.11";
        let names = [
            (format!("{single}.attn.to_q"), 4),
            (format!("{single}.attn.to_k"), 4),
            (format!("{single}.attn.to_v"), 4),
            (format!("{single}.proj_mlp"), 16),
            (format!("{single}.proj_out"), 4),
            (format!("{double}.attn.add_q_proj"), 4),
            (format!("{double}.attn.add_k_proj"), 4),
            (format!("{double}.attn.add_v_proj"), 4),
            (format!("{double}.attn.norm_added_q"), 2),
            ("proj_out".to_owned(), 3),
            ("norm_out.linear".to_owned(), 8),
        ];
        let shapes = shapes(&names.iter().map(|(name, rows)| (name.as_str(), *rows)).collect::<Vec<_>>());
        let layers = OriginalLayers::of(&shapes);
        let linear1 = rows(&layers, "single_blocks.0.linear1");
        let last = 12..28;
        assert_eq!((linear1.len(), &linear1[3]), (4, &(format!("{single}.proj_mlp"), vec![last])));
        assert_eq!(rows(&layers, "double_blocks.11.txt_attn.qkv").len(), 3);
        assert_eq!(rows(&layers, "final_layer.adaLN_modulation.1"), [("norm_out.linear".to_owned(), vec![4..8, 0..4])]);
        for (ours, old) in [
            (format!("{single}.proj_out"), "single_blocks.0.linear2"),
            (format!("{double}.attn.norm_added_q"), "double_blocks.11.txt_attn.norm.query_norm"),
            ("proj_out".to_owned(), "final_layer.linear"),
        ] {
            assert_eq!(layers.name(&format!("{COMPONENT}{ours}")), Some(format!("{COMPONENT}{old}").as_str()));
        }
    }

    #[test]
    fn flux_2_has_the_joint_layer_of_its_single_blocks_as_it_was() {
        let single = "single_transformer_blocks.7";
        let names = [
            (format!("{single}.attn.to_qkv_mlp_proj"), 18),
            (format!("{single}.attn.to_out"), 2),
            ("transformer_blocks.0.ff_context.linear_in".to_owned(), 12),
            ("transformer_blocks.0.attn.to_out.0".to_owned(), 2),
            ("time_guidance_embed.timestep_embedder.linear_2".to_owned(), 2),
            ("double_stream_modulation_txt.linear".to_owned(), 12),
        ];
        let layers = OriginalLayers::of(&shapes(&names.iter().map(|(name, rows)| (name.as_str(), *rows)).collect::<Vec<_>>()));
        assert!(layers.joint.is_empty());
        let old = [
            "single_blocks.7.linear1",
            "single_blocks.7.linear2",
            "double_blocks.0.txt_mlp.0",
            "double_blocks.0.img_attn.proj",
            "time_in.out_layer",
            "double_stream_modulation_txt.lin",
        ];
        for ((ours, _), old) in names.iter().zip(old) {
            assert_eq!(layers.name(&format!("{COMPONENT}{ours}")), Some(format!("{COMPONENT}{old}").as_str()));
        }
    }

    #[test]
    fn other_transformers_have_no_first_names() {
        let layers =
            OriginalLayers::of(&shapes(&[("transformer_blocks.0.attn.to_q", 4), ("transformer_blocks.0.attn.to_out.0", 4)]));
        assert!(layers.names.is_empty() && layers.joint.is_empty());
    }
}
