//! PEFT's configuration of an adapter, out of a LoRA file's header or an `adapter_config.json`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::module_pattern::ModulePattern;

/// More patterns than a model has modules.
const MAX_PATTERNS: usize = 4_096;
/// More expressions than anyone writes by hand; diffusers writes names.
const MAX_EXPRESSIONS: usize = 64;
/// What PEFT 0.21 takes for `r` and for alpha where nothing is written.
const DEFAULT: f64 = 8.0;

/// Kinds of PEFT's adapters that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeftType {
    Lora,
    Loha,
    Lokr,
}

/// The part of `LoraConfig`, `LoHaConfig` or `LoKrConfig` (PEFT 0.21) that decides what its matrices mean.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub(super) peft_type: PeftType,
    pub(super) use_rslora: bool,
    pub(super) use_dora: bool,
    rank: f64,
    alpha: f64,
    rank_pattern: Vec<(ModulePattern, f64)>,
    alpha_pattern: Vec<(ModulePattern, f64)>,
}

/// A file's configurations by component; that of all components is under the empty name.
pub(super) type AdapterConfigs = HashMap<String, AdapterConfig>;

#[derive(Deserialize)]
struct Written {
    peft_type: Option<String>,
    r: Option<f64>,
    /// Of LoRA.
    lora_alpha: Option<f64>,
    /// Of `LoHa` and `LoKr`.
    alpha: Option<f64>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl AdapterConfig {
    /// The rank that the matrices of a module must have, and its alpha. `names`: what the module is called in the model that PEFT saw.
    ///
    /// # Errors
    /// When an expression takes too long to be matched.
    pub(super) fn rank_and_alpha(&self, names: &[&str]) -> Result<(usize, f64), String> {
        let rank = matched(&self.rank_pattern, names)?.unwrap_or(self.rank);
        let alpha = matched(&self.alpha_pattern, names)?.unwrap_or(self.alpha);
        Ok((rank as usize, alpha))
    }

    fn read(config: Map<String, Value>) -> Result<Self, String> {
        let written: Written = serde_json::from_value(Value::Object(config)).map_err(|error| error.to_string())?;
        let peft_type = match written.peft_type.as_deref() {
            None | Some("LORA") => PeftType::Lora,
            Some("LOHA") => PeftType::Loha,
            Some("LOKR") => PeftType::Lokr,
            Some(other) => return Err(format!("peft_type is {other:?}; supported are LORA, LOHA and LOKR")),
        };
        refuse_variants(&written.others)?;
        refuse_changed_base(written.init_lora_weights.as_ref())?;
        let alpha = if peft_type == PeftType::Lora { written.lora_alpha } else { written.alpha };
        let config = Self {
            peft_type,
            use_rslora: written.use_rslora.unwrap_or_default(),
            use_dora: written.use_dora.unwrap_or_default(),
            rank: positive("r", written.r.unwrap_or(DEFAULT))?,
            alpha: finite("alpha", alpha.unwrap_or(DEFAULT))?,
            rank_pattern: patterns("rank_pattern", written.rank_pattern, positive)?,
            alpha_pattern: patterns("alpha_pattern", written.alpha_pattern, finite)?,
        };
        Ok(config)
    }
}

/// Reads what diffusers writes into a header: a JSON object with keys like `unet.lora_alpha` (`save_lora_weights`), or like `lora_alpha`
/// (`save_lora_adapter`).
///
/// # Errors
/// Says what is no such object, or not supported.
pub(super) fn header_configs(text: &str) -> Result<AdapterConfigs, String> {
    let mut components: HashMap<String, Map<String, Value>> = HashMap::new();
    for (name, value) in object(text)? {
        let (component, key) = name.split_once('.').unwrap_or(("", &name));
        components.entry(component.to_owned()).or_default().insert(key.to_owned(), value);
    }
    components.into_iter().map(|(component, config)| Ok((component, AdapterConfig::read(config)?))).collect()
}

/// Reads an `adapter_config.json` as PEFT's `save_pretrained` writes it.
///
/// # Errors
/// Says what is no such object, or not supported.
pub(super) fn file_config(text: &str) -> Result<AdapterConfigs, String> {
    let config = object(text)?;
    if !config.contains_key("peft_type") {
        return Err("has no peft_type; is it the adapter_config.json of PEFT?".into());
    }
    Ok(HashMap::from([(String::new(), AdapterConfig::read(config)?)]))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(entries)) => Ok(entries),
        Ok(_) => Err("must be a JSON object".into()),
        Err(error) => Err(format!("must be a JSON object ({error})")),
    }
}

/// Options under which the matrices mean something else.
fn refuse_variants(others: &Map<String, Value>) -> Result<(), String> {
    const VARIANTS: [&str; 12] = [
        "use_qalora",
        "use_bdlora",
        "kasa_config",
        "monteclora_config",
        "velora_config",
        "arrow_config",
        "alora_invocation_tokens",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "megatron_config",
        "modules_to_save",
    ];
    match VARIANTS.iter().find(|name| others.get(**name).is_some_and(is_set)) {
        Some(name) => Err(format!("{name} is set, which is not supported")),
        None => Ok(()),
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(entries) => !entries.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        _ => true,
    }
}

/// Starts after which the adapter belongs to another base weight than the model's.
fn refuse_changed_base(init: Option<&Value>) -> Result<(), String> {
    const KEEP_THE_BASE: [&str; 3] = ["gaussian", "eva", "orthogonal"];
    match init {
        Some(Value::String(init)) if !KEEP_THE_BASE.contains(&init.as_str()) => Err(format!(
            "init_lora_weights is {init:?}, which changes the model's own weights; save it as plain LoRA \
             (path_initial_model_for_weight_conversion in PEFT)"
        )),
        _ => Ok(()),
    }
}

fn patterns(
    field: &str,
    written: Option<Map<String, Value>>,
    checked: impl Fn(&str, f64) -> Result<f64, String>,
) -> Result<Vec<(ModulePattern, f64)>, String> {
    let written = written.unwrap_or_default();
    if written.len() > MAX_PATTERNS {
        return Err(format!("{field} has {} patterns; at most {MAX_PATTERNS} are allowed", written.len()));
    }
    let mut patterns = Vec::with_capacity(written.len());
    for (key, value) in written {
        let number = value.as_f64().ok_or_else(|| format!("{field} has no number for {key:?}"))?;
        let pattern = ModulePattern::new(&key).map_err(|problem| format!("{field} has {key:?}: {problem}"))?;
        patterns.push((pattern, checked(field, number)?));
    }
    let expressions = patterns.iter().filter(|(pattern, _)| pattern.is_expression()).count();
    if expressions > MAX_EXPRESSIONS {
        return Err(format!("{field} has {expressions} regular expressions; at most {MAX_EXPRESSIONS} are allowed"));
    }
    Ok(patterns)
}

/// The number of the first pattern that fits, in the order in which they are written: PEFT's `get_pattern_key`.
fn matched(patterns: &[(ModulePattern, f64)], names: &[&str]) -> Result<Option<f64>, String> {
    for (pattern, number) in patterns {
        for name in names {
            if pattern.fits(name)? {
                return Ok(Some(*number));
            }
        }
    }
    Ok(None)
}

fn positive(field: &str, number: f64) -> Result<f64, String> {
    if number >= 1.0 && number.fract() == 0.0 { Ok(number) } else { Err(format!("{field} must be a whole number from 1 on")) }
}

fn finite(field: &str, number: f64) -> Result<f64, String> {
    if number.is_finite() { Ok(number) } else { Err(format!("{field} must be a finite number")) }
}
