//! How `host.models` lists the models behind one host.

use serde::Deserialize;

use crate::job::task::ModelName;
use crate::shown;

/// An element of `host.models`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedModel {
    /// Of its manifest.
    pub name: ModelName,
    /// Handler processes; 0: one for each of its devices, or one where there is none.
    #[serde(default)]
    pub handlers: u32,
    /// GPUs as `CUDA_VISIBLE_DEVICES` has them; empty: all that the host sees.
    #[serde(default, deserialize_with = "devices")]
    pub devices: Vec<String>,
    /// MiB of a device that its handler has; set: it shares the device with the others that have this.
    #[serde(default)]
    pub memory_mib: Option<u64>,
}

/// # Errors
/// When a model is listed twice, or a device cannot be one.
pub fn check(models: &[ListedModel]) -> Result<(), String> {
    for (place, ListedModel { name, devices, .. }) in models.iter().enumerate() {
        let name = name.as_str();
        if models[..place].iter().any(|other| other.name.as_str() == name) {
            return Err(format!("lists {name} twice: give it more `handlers` and `devices`"));
        }
        if let Some(device) = devices.iter().find(|device| device.is_empty() || device.contains([',', ' '])) {
            let device = shown::text(device);
            return Err(format!("{name}: a device must be one number or name as CUDA_VISIBLE_DEVICES has them, got {device}"));
        }
    }
    Ok(())
}

/// Numbers or names.
fn devices<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Gpu {
        Index(u32),
        Name(String),
    }
    let gpus = Vec::<Gpu>::deserialize(deserializer)?.into_iter().map(|gpu| match gpu {
        Gpu::Index(index) => index.to_string(),
        Gpu::Name(name) => name,
    });
    Ok(gpus.collect())
}
