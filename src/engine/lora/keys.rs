//! The names under which trainers save the matrices of a LoRA, and the base tensors they mean.

use std::collections::HashMap;

/// Which of a module's entries a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// (rank, in): A of PEFT.
    Down,
    /// (out, rank): B of PEFT.
    Up,
    Alpha,
}

/// What ends a key, and its role: diffusers and PEFT, older diffusers, kohya.
const SUFFIXES: &[(&str, Role)] = &[
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What betrays a kind of adapter that is no LoRA.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("hada_w", "LoHa"),
    ("lokr_w", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "LoCon with a middle matrix"),
    ("oft_", "OFT"),
];

/// The kind of adapter a key belongs to, when it is none that is supported.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark)).map(|(_, kind)| *kind)
}

/// A key as module and role: `unet.….to_q.lora_A.weight` is the `Down` of `unet.….to_q`.
pub(super) fn split(key: &str) -> Option<(&str, Role)> {
    SUFFIXES.iter().find_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, *role)))
}

/// Finds base tensors by the names of modules in LoRA files.
pub(super) struct Targets {
    /// Every name a module goes by, and its weight's.
    weights: HashMap<String, String>,
}

impl Targets {
    /// `names`: of all base tensors, `unet.conv_in.weight` and so on.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        let mut weights = HashMap::new();
        for name in names {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let mut add = |alias: String| weights.insert(alias, name.clone());
            add(format!("lora_{}", module.replacen("text_encoder.", "te.", 1).replace('.', "_")));
            add(module.to_owned());
            // The UNet may go without its prefix: files of `unet.save_lora_adapter` and of old `save_attn_procs`.
            if let Some(bare) = module.strip_prefix("unet.") {
                add(bare.to_owned());
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
