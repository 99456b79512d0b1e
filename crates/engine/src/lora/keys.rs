//! The names under which trainers save the matrices of an adapter, and the base tensors they mean.

use std::collections::HashMap;

use crate::original_names::Layout;

/// Which of a module's entries a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// LoRA: (rank, in, …), A of PEFT.
    Down,
    /// LoRA: (out, rank, …), B of PEFT.
    Up,
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
    (".lora_A.default.weight", Part::Down),
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

/// What betrays a kind of adapter that is not supported.
const OTHER_KINDS: &[(&str, &str)] =
    &[("oft_", "OFT"), (".on_input", "IA3"), (".a1.weight", "GLoRA"), (".lora_embedding_", "LoRA of an embedding")];

/// The kind of adapter a key belongs to, when it is none that is supported.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark)).map(|(_, kind)| *kind)
}

/// A key as module and part: `unet.….to_q.lora_A.weight` is the `Down` of `unet.….to_q`.
pub(super) fn split(key: &str) -> Option<(&str, Part)> {
    SUFFIXES.iter().find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, *part)))
}

/// Finds base tensors by the names of modules in adapter files.
pub(super) struct Targets {
    /// Every name a module goes by, and its weight's.
    weights: HashMap<String, String>,
}

impl Targets {
    /// `names`: of all base tensors, `unet.conv_in.weight` and so on.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        let modules: Vec<&str> = names.filter_map(|name| name.strip_suffix(".weight")).collect();
        let layout = Layout::of(modules.iter().filter_map(|module| module.strip_prefix("unet.")));
        let mut weights = HashMap::new();
        for module in modules {
            let mut add = |alias: String| weights.insert(alias, format!("{module}.weight"));
            add(format!("lora_{}", module.replacen("text_encoder.", "te.", 1).replace('.', "_")));
            add(module.to_owned());
            if let Some(bare) = module.strip_prefix("unet.") {
                // The UNet may go without its prefix: files of `unet.save_lora_adapter` and of old `save_attn_procs`.
                add(bare.to_owned());
                if let Some(old) = layout.old_name(bare) {
                    add(format!("lora_unet_{}", old.replace('.', "_")));
                }
            }
            // Lightning files have no prefix, ComfyUI's have another.
            if let Some(bare) = module.strip_prefix("transformer.") {
                add(bare.to_owned());
                add(format!("diffusion_model.{bare}"));
                add(format!("lora_unet_{}", bare.replace('.', "_")));
            }
            // Transformers 5 names the text encoder's modules so.
            if let Some(bare) = module.strip_prefix("text_encoder.text_model.") {
                add(format!("text_encoder.{bare}"));
            }
        }
        Self { weights }
    }

    /// The name of the base tensor that belongs to `module`.
    pub(super) fn weight(&self, module: &str) -> Option<&str> {
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let found = self.weights.get(module).or_else(|| self.weights.get(&without_processor(module)?));
        found.map(String::as_str)
    }
}

/// `attn1.processor.to_q` is `attn1.to_q`, and `processor.to_out` is `to_out.0`.
fn without_processor(module: &str) -> Option<String> {
    let (attention, projection) = module.split_once(".processor.")?;
    let tail = if projection == "to_out" { ".0" } else { "" };
    Some(format!("{attention}.{projection}{tail}"))
}
