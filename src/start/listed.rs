//! The models that a host serves: those that `host.models` lists, or the one that `model.name` names.

use super::{segmenter, upscalers};
use crate::config::manifest::Manifest;
use crate::config::{Config, ConfigError, Environment};
use crate::host::Function;
use crate::host::http::ModelInfo;
use crate::host::listed::ListedModel;
use crate::host::process::Program;
use crate::host::sharing::{self, Share};
use crate::job::request::catalogue::{Catalogue, Served};
use crate::metrics::gpu;

const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// A model with the configuration that its own handlers have.
pub(super) struct HostedModel {
    pub(super) config: Config,
    pub(super) manifest: Manifest,
    /// One a handler: the value of its `CUDA_VISIBLE_DEVICES`, where it is to see one GPU only.
    pub(super) gpus: Vec<Option<String>>,
    /// One a handler: what it has of a device that it shares.
    pub(super) shares: Vec<Option<Share>>,
    /// MiB of its device, where it shares one.
    memory_mib: Option<u64>,
}

/// # Errors
/// When a manifest is wrong, or the models do not go together.
pub(super) fn hosted(config: &Config, environment: &Environment) -> Result<Vec<HostedModel>, ConfigError> {
    let visible = visible(environment);
    let mut models: Vec<HostedModel> = Vec::new();
    for (place, own) in config.of_each_model().into_iter().enumerate() {
        let manifest = own.manifest(environment)?;
        if let Some(first) = models.first() {
            check_prefix(first, &manifest)?;
        }
        let gpus = match config.host.models.get(place) {
            None => gpus(&visible, config.host.handlers),
            Some(listed) => gpus(devices(listed, &visible, environment)?, listed.handlers),
        };
        let memory_mib = config.host.models.get(place).and_then(|listed| listed.memory_mib);
        models.push(HostedModel { config: own, manifest, shares: vec![None; gpus.len()], gpus, memory_mib });
    }
    let placed: Vec<(&ListedModel, &[Option<String>])> =
        config.host.models.iter().zip(&models).map(|(listed, model)| (listed, model.gpus.as_slice())).collect();
    let shares = sharing::shares(&placed).map_err(wrong_models)?;
    for (model, shares) in models.iter_mut().zip(shares) {
        model.shares = shares;
    }
    Ok(models)
}

fn wrong_models(problem: String) -> ConfigError {
    ConfigError::Value { file: "configuration".into(), key: "host.models".into(), problem }
}

/// A host looks for the record of a job that it does not know under one prefix.
fn check_prefix(first: &HostedModel, manifest: &Manifest) -> Result<(), ConfigError> {
    let prefix = &first.manifest.defaults.prefix;
    if *prefix == manifest.defaults.prefix {
        return Ok(());
    }
    let problem = format!(
        "must be {prefix:?}, as that of {}, which stands before it in host.models: a job is looked for under one prefix",
        first.config.model.name.as_str()
    );
    Err(ConfigError::Value { file: manifest.file.display().to_string(), key: "defaults.prefix".into(), problem })
}

/// The GPUs of a listed model, out of those that this process sees.
fn devices<'a>(listed: &'a ListedModel, visible: &'a [String], environment: &Environment) -> Result<&'a [String], ConfigError> {
    if listed.devices.is_empty() {
        return Ok(visible);
    }
    let is_limited = environment.contains_key(VISIBLE);
    if let Some(device) = listed.devices.iter().find(|device| is_limited && !visible.contains(device)) {
        let name = listed.name.as_str();
        let visible = visible.join(",");
        return Err(wrong_models(format!(
            "{name}: {device} must be one of {visible}, the devices that {VISIBLE} lets this host see"
        )));
    }
    Ok(&listed.devices)
}

impl HostedModel {
    pub(super) fn function(&self) -> Function {
        let capabilities = super::capabilities(&self.config, &self.manifest);
        let upscalers = upscalers::known(&self.config, &self.manifest);
        let segmenter = segmenter::known(&self.manifest);
        Function { model: self.config.model.name.clone(), capabilities, upscalers, segmenter }
    }

    fn served(&self) -> Served {
        let Function { model, capabilities, .. } = self.function();
        Served { name: model, tasks: capabilities.tasks(), defaults: self.manifest.defaults.clone() }
    }

    pub(super) fn info(&self) -> ModelInfo {
        ModelInfo {
            model_type: self.manifest.family.as_str().to_owned(),
            model_version: self.config.model.name.as_str().to_owned(),
            backend: "candle".into(),
        }
    }

    /// The handlers' program: `program` with what makes them serve this model, whatever the configuration file says.
    pub(super) fn named(&self, program: Program) -> Program {
        let name = ("ATELIER__MODEL__NAME".to_owned(), self.config.model.name.as_str().to_owned());
        let memory = self.memory_mib.map(|mib| ("ATELIER__ENGINE__MEMORY_BUDGET_MIB".to_owned(), mib.to_string()));
        Program { environment: program.environment.into_iter().chain([name]).chain(memory).collect(), ..program }
    }
}

/// None: there are no models.
pub(super) fn catalogue(models: &[HostedModel]) -> Option<Catalogue> {
    let mut served = models.iter().map(HostedModel::served);
    Some(Catalogue::new(served.next()?, served.collect()))
}

/// The GPUs that this process sees.
pub(super) fn visible(environment: &Environment) -> Vec<String> {
    let listed: Vec<String> = environment
        .get(VISIBLE)
        .map(|list| list.split(',').map(|gpu| gpu.trim().to_owned()).filter(|gpu| !gpu.is_empty()).collect())
        .unwrap_or_default();
    if listed.is_empty() { (0..gpu::count()).map(|index| index.to_string()).collect() } else { listed }
}

/// One a handler: which GPU it is to see. `handlers`: 0 for one a device.
pub(super) fn gpus(devices: &[String], handlers: u32) -> Vec<Option<String>> {
    let handlers = if handlers == 0 { devices.len().max(1) } else { handlers as usize };
    (0..handlers).map(|index| devices.get(index % devices.len().max(1)).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_take_turns_at_the_devices() {
        let devices = ["4".to_owned(), "MIG-1".to_owned()];
        let on = |handlers| gpus(&devices, handlers).into_iter().flatten().collect::<Vec<_>>().join(" ");
        assert_eq!([on(0), on(1), on(3)], ["4 MIG-1", "4", "4 MIG-1 4"]);
        assert_eq!((gpus(&[], 0), gpus(&[], 2)), (vec![None], vec![None, None]));
    }
}
