//! The names under which trainers save the matrices of an adapter, and the base tensors they mean.

use std::collections::HashMap;

use crate::original_layers::{OriginalLayers, RowSlice};
use crate::original_names::Layout;
use crate::weights::Shapes;

/// Which of a module's entries a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// LoRA: (rank, in, …), A of PEFT.
    Down,
    /// LoRA: (out, rank, …), B of PEFT.
    Up,
    /// LoRA: (out,), added to the module's bias as the product is to its weight (`lora_bias` of PEFT).
    UpBias,
    /// `LoCon` in three parts: (rank, rank, height, width).
    Mid,
    Alpha,
    /// `DoRA` as `LyCORIS` and kohya save it: (out, 1, …) or (1, in, …).
    DoraScale,
    /// `DoRA` as PEFT saves it: (out,), of a convolution (1, out, 1, 1).
    Magnitude,
    /// `LoHa`: two products `w_a·w_b`, each perhaps around a core, multiplied number by number.
    HadaA(Side),
    HadaB(Side),
    HadaCore(Side),
    /// `LoKr`: two factors of a Kronecker product, each whole, a product `w_a·w_b`, or one around a core.
    Kron(Side),
    KronA(Side),
    KronB(Side),
    KronCore(Side),
    /// A change of the weight as it is.
    Diff,
    /// A change of the bias.
    DiffBias,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    First,
    Second,
}

/// What ends a key, and which part it is: diffusers and PEFT, older diffusers, kohya, `LyCORIS`.
const SUFFIXES: &[(&str, Part)] = &[
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.bias", Part::UpBias),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.bias", Part::UpBias),
    (".lora_B.default.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector.default.weight", Part::Magnitude),
    (".hada_w1_a", Part::HadaA(Side::First)),
    (".hada_w1_b", Part::HadaB(Side::First)),
    (".hada_t1", Part::HadaCore(Side::First)),
    (".hada_w2_a", Part::HadaA(Side::Second)),
    (".hada_w2_b", Part::HadaB(Side::Second)),
    (".hada_t2", Part::HadaCore(Side::Second)),
    (".lokr_w1", Part::Kron(Side::First)),
    (".lokr_w1_a", Part::KronA(Side::First)),
    (".lokr_w1_b", Part::KronB(Side::First)),
    (".lokr_t1", Part::KronCore(Side::First)),
    (".lokr_w2", Part::Kron(Side::Second)),
    (".lokr_w2_a", Part::KronA(Side::Second)),
    (".lokr_w2_b", Part::KronB(Side::Second)),
    (".lokr_t2", Part::KronCore(Side::Second)),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffBias),
    (".w_norm", Part::Diff),
    (".b_norm", Part::DiffBias),
];

/// What keys of a kind of adapter that is not supported hold: `LyCORIS`'s and kohya's kinds, then PEFT's.
const OTHER_KINDS: &[(&str, &str)] = &[
    (".boft_", "BOFT"),
    (".oft_", "OFT"),
    (".a1.weight", "GLoRA"),
    (".a2.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".b2.weight", "GLoRA"),
    (".glora_", "GLoRA"),
    (".up_list.", "DyLoRA"),
    (".down_list.", "DyLoRA"),
    (".on_input", "IA3"),
    (".ia3_", "IA3"),
    (".lora_E", "AdaLoRA"),
    (".lora_embedding_", "LoRA of an embedding"),
    (".vera_", "VeRA"),
    (".vblora_", "VB-LoRA"),
    (".randlora_", "RandLoRA"),
    (".delora_", "DeLoRA"),
    (".gralora_", "GraLoRA"),
    (".hra_", "HRA"),
    (".fourierft_", "FourierFT"),
    (".bone_", "Bone"),
    (".miss_", "MiSS"),
    (".shira_", "SHiRA"),
    (".c3a_", "C3A"),
    (".road_", "RoAd"),
];
/// kohya's `DyLoRA` before it is written as LoRA: a parameter for each rank.
const DYLORA: [&str; 2] = [".lora_A", ".lora_B"];

/// The kind of adapter a tensor belongs to, when it is none that is supported.
pub(super) fn other_kind(key: &str, shape: &[usize]) -> Option<&'static str> {
    match OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark)) {
        // `LyCORIS` has one name for both; the butterfly's blocks have a level more.
        Some((_, "OFT")) if shape.len() == 4 => Some("BOFT"),
        Some((_, kind)) => Some(kind),
        None => is_dylora(key).then_some("DyLoRA"),
    }
}

fn is_dylora(key: &str) -> bool {
    DYLORA.iter().any(|end| {
        let rank = key.split_once(*end).map(|(_, rank)| rank.strip_prefix('.').unwrap_or(rank));
        rank.is_some_and(|rank| rank.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// What the keys of files begin with that PEFT's `save_pretrained` wrote: these have their alpha in another file.
const PEFT: &str = "base_model.model.";

pub(super) fn is_of_peft(key: &str) -> bool {
    key.starts_with(PEFT)
}

pub(super) fn is_alpha(key: &str) -> bool {
    matches!(split(key), Some((_, Part::Alpha)))
}

/// What the keys of textual inversions begin with that `OneTrainer` keeps in a LoRA file: `bundle_emb.WORD.clip_l`.
const BUNDLE: &str = "bundle_emb.";
/// What ends such a key, of `OneTrainer` and of others, and the place of the text encoder whose vectors these are.
const BUNDLE_SUFFIXES: [(&str, usize); 4] = [(".clip_l", 0), (".clip_g", 1), (".emb_params", 0), (".string_to_param.*", 0)];

/// The word that a key of a bundled textual inversion is about, and the place of its text encoder; an error where it is none of CLIP's.
pub(super) fn bundled_word(key: &str) -> Option<Result<(&str, usize), ()>> {
    let rest = key.strip_prefix(BUNDLE)?;
    let found = BUNDLE_SUFFIXES.iter().find_map(|(suffix, encoder)| Some((rest.strip_suffix(suffix)?, *encoder)));
    Some(found.ok_or(()))
}

/// A key as module and part: `unet.….to_q.lora_A.weight` is the `Down` of `unet.….to_q`.
pub(super) fn split(key: &str) -> Option<(&str, Part)> {
    SUFFIXES.iter().find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, *part)))
}

/// Finds base tensors by the names of modules in adapter files.
pub(super) struct Targets {
    /// Every name a module goes by, and its weight's.
    weights: HashMap<String, String>,
    /// Of all base tensors, and of layers that were one where they are several here.
    shapes: Shapes,
    original: OriginalLayers,
    /// Values of all base tensors.
    elements: usize,
}

impl Targets {
    /// `shapes`: of all base tensors, by names such as `unet.conv_in.weight`.
    pub(super) fn new(shapes: &Shapes) -> Self {
        let original = OriginalLayers::of(shapes);
        let elements = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        let mut shapes = shapes.clone();
        shapes.extend(original.shapes(&shapes));
        let modules: Vec<&str> = shapes.keys().filter_map(|name| name.strip_suffix(".weight")).collect();
        let layout = Layout::of(modules.iter().filter_map(|module| module.strip_prefix("unet.")));
        let mut weights = HashMap::new();
        for module in modules {
            for name in names_of(module, &layout, &original) {
                weights.insert(name, format!("{module}.weight"));
            }
        }
        Self { weights, shapes, original, elements }
    }

    pub(super) fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    pub(super) fn elements(&self) -> usize {
        self.elements
    }

    /// Where the rows of `target`, a weight or a bias, belong, if that is no tensor of its own: names of tensors, and rows.
    pub(super) fn slices<'a>(&'a self, target: &'a str) -> Option<(&'a [RowSlice], &'a str)> {
        let (module, kind) = target.rsplit_once('.')?;
        Some((self.original.slices(module)?, kind))
    }

    /// The name of the base tensor that belongs to `module`.
    pub(super) fn weight(&self, module: &str) -> Option<&str> {
        let module = module.strip_prefix(PEFT).unwrap_or(module);
        let found = self.weights.get(module).or_else(|| self.weights.get(&module.replacen(".processor.", ".", 1)));
        found.map(String::as_str)
    }
}

/// Every name of a module in the files of trainers.
fn names_of(module: &str, layout: &Layout, original: &OriginalLayers) -> Vec<String> {
    let flat = |prefix: &str, name: &str| format!("{prefix}_{}", name.replace('.', "_"));
    let mut names = vec![module.to_owned()];
    if let Some(bare) = module.strip_prefix("unet.") {
        // The UNet may go without its prefix: files of `unet.save_lora_adapter` and of old `save_attn_procs`.
        names.extend([bare.to_owned(), flat("lora_unet", bare), flat("lycoris", bare)]);
        names.extend(layout.old_name(bare).map(|old| flat("lora_unet", &old)));
        // The attention of diffusers before 0.17 had no list of layers there.
        if let Some(bare) = bare.strip_suffix(".to_out.0") {
            names.extend([format!("unet.{bare}.to_out"), format!("{bare}.to_out")]);
        }
    }
    // Lightning files have no prefix, ComfyUI's have another.
    if let Some(bare) = module.strip_prefix("transformer.") {
        let old = original.name(module).and_then(|old| old.strip_prefix("transformer."));
        for bare in [Some(bare), old].into_iter().flatten() {
            names.extend([bare.to_owned(), format!("diffusion_model.{bare}"), format!("transformer.{bare}")]);
            names.extend(["lora_transformer", "lora_unet", "lycoris"].map(|prefix| flat(prefix, bare)));
            // Exports of FLUX.2's that took `tran` off as well.
            names.extend(bare.strip_prefix("tran").map(|rest| format!("diffusion_model.{rest}")));
        }
    }
    if let Some(bare) = module.strip_prefix("text_encoder_2.") {
        // Transformers 5 leaves `text_model` out.
        for name in [Some(bare), bare.strip_prefix("text_model.")].into_iter().flatten() {
            names.extend([flat("lora_te2", name), format!("text_encoder_2.{name}")]);
            names.push(format!("text_encoders.clip_g.transformer.{name}"));
            names.extend(old_projection(name).map(|old| format!("text_encoder_2.{old}")));
        }
    }
    if let Some(bare) = module.strip_prefix("text_encoder.text_model.") {
        // Transformers 5 leaves `text_model` out; PEFT's files of the text encoder alone have no component.
        for name in [format!("text_model.{bare}"), bare.to_owned()] {
            names.extend(["lora_te", "lora_te1", "lycoris"].map(|prefix| flat(prefix, &name)));
            names.extend([name.clone(), format!("text_encoder.{name}"), format!("text_encoders.clip_l.transformer.{name}")]);
            // diffusers before 0.18 called the text encoder's layers as the UNet's.
            if let Some(old) = old_projection(&name) {
                names.extend([format!("text_encoder.{old}"), old]);
            }
        }
    }
    names
}

/// `self_attn.q_proj` as `self_attn.to_q`.
fn old_projection(module: &str) -> Option<String> {
    const OLD: [(&str, &str); 4] = [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")];
    OLD.iter().find_map(|(new, old)| Some(format!("{}.{old}", module.strip_suffix(new)?.strip_suffix('.')?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_of_whole_pipelines_are_understood() {
        let layer = "text_model.encoder.layers.0.mlp.fc1";
        let names = [
            (format!("text_encoders.clip_l.transformer.{layer}"), format!("text_encoder.{layer}")),
            (format!("text_encoders.clip_g.transformer.{layer}"), format!("text_encoder_2.{layer}")),
            ("diffusion_model.sformer_blocks.3.attn.to_q".into(), "transformer.transformer_blocks.3.attn.to_q".into()),
        ];
        let shapes = names.iter().map(|(_, module)| (format!("{module}.weight"), vec![4, 4])).collect();
        let targets = Targets::new(&shapes);
        for (name, module) in names {
            assert_eq!(targets.weight(&name), Some(format!("{module}.weight").as_str()), "{name}");
        }
    }
}
