//! How several models share the memory of one device: what the configuration says, and who is on which device.

use serde::Deserialize;

use super::listed::ListedModel;

/// Settings of section `host.sharing`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// MiB of each device for all models that share it; none: no model shares one.
    pub memory_mib: Option<u64>,
    /// Milliseconds that a job for a model that is not loaded waits at most while jobs of loaded ones go first.
    pub max_swap_wait_ms: u64,
    /// Messages of queues that wait here at most, so that jobs of loaded models can go first.
    pub lookahead: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_mib: None, max_swap_wait_ms: 60_000, lookahead: 4 }
    }
}

/// What a handler has of a device that it shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Counted over all shared devices.
    pub device: usize,
    pub memory_mib: u64,
}

impl Settings {
    /// # Errors
    /// The key below `host` that is wrong, and a sentence.
    pub fn check(&self, models: &[ListedModel]) -> Result<(), (&'static str, String)> {
        if self.lookahead == 0 {
            return Err(("host.sharing.lookahead", "must be at least 1: a model is loaded for a job that has arrived".into()));
        }
        let Some(budget) = self.memory_mib else {
            let sharing = models.iter().find(|model| model.memory_mib.is_some());
            return sharing.map_or(Ok(()), |model| {
                let name = model.name.as_str();
                let problem = format!("must say how many MiB of a device its models have together: {name} has `memory_mib`");
                Err(("host.sharing.memory_mib", problem))
            });
        };
        if models.iter().all(|model| model.memory_mib.is_none()) {
            let problem = "is set, and no element of host.models has `memory_mib`: give it to each model that shares a device";
            return Err(("host.sharing.memory_mib", problem.into()));
        }
        for ListedModel { name, memory_mib, .. } in models {
            let name = name.as_str();
            match memory_mib {
                Some(0) => return Err(("host.models", format!("{name}: memory_mib must be at least 1"))),
                Some(own) if *own > budget => {
                    let problem = format!(
                        "{name}: memory_mib {own} is more than the {budget} of host.sharing.memory_mib: it could never be loaded"
                    );
                    return Err(("host.models", problem));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What each handler of each model shares, for models in their order, each with the devices of its handlers; a device is none where
/// there is no GPU: then it is the machine.
///
/// # Errors
/// Of `host.models`: when a model would share a device with itself, or with one that has no `memory_mib`.
pub fn shares(models: &[(&ListedModel, &[Option<String>])]) -> Result<Vec<Vec<Option<Share>>>, String> {
    let mut devices: Vec<&Option<String>> = Vec::new();
    let sharing = models.iter().filter(|(model, _)| model.memory_mib.is_some());
    for (model, own) in sharing {
        for (place, device) in own.iter().enumerate() {
            if own[..place].contains(device) {
                let name = model.name.as_str();
                let device = shown(device.as_ref());
                return Err(format!(
                    "{name}: a model with `memory_mib` has one handler on a device, and this has several on {device}: leave `handlers` out, and name each of its `devices` once"
                ));
            }
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
    }
    let of_model = models.iter().map(|(model, own)| {
        let shares = own.iter().map(|device| {
            let shared = devices.iter().position(|shared| *shared == device);
            match (shared, model.memory_mib) {
                (Some(device), Some(memory_mib)) => Ok(Some(Share { device, memory_mib })),
                (Some(_), None) => Err(without_memory(model, device.as_ref())),
                (None, _) => Ok(None),
            }
        });
        shares.collect()
    });
    of_model.collect()
}

fn without_memory(model: &ListedModel, device: Option<&String>) -> String {
    let name = model.name.as_str();
    let device = shown(device);
    format!("{name}: others share {device} (`memory_mib`): give {name} `memory_mib` as well, or other `devices`")
}

fn shown(device: Option<&String>) -> String {
    device.map_or_else(|| "the machine".to_owned(), |device| format!("device {device}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::task::ModelName;

    fn model(name: &str, memory_mib: Option<u64>) -> ListedModel {
        ListedModel { name: ModelName::new(name).unwrap(), handlers: 0, devices: Vec::new(), memory_mib }
    }

    fn on(devices: &[&str]) -> Vec<Option<String>> {
        devices.iter().map(|device| Some((*device).to_owned())).collect()
    }

    #[test]
    fn handlers_on_one_device_share_it() {
        let a = model("a", Some(4));
        let b = model("b", Some(8));
        let alone = model("c", None);
        let placed = shares(&[(&a, &on(&["0", "1"])), (&b, &on(&["1"])), (&alone, &on(&["2"]))]).unwrap();
        let share = |device, memory_mib| Some(Share { device, memory_mib });
        assert_eq!(placed, [vec![share(0, 4), share(1, 4)], vec![share(1, 8)], vec![None]]);
        assert_eq!(shares(&[(&a, &[None]), (&b, &[None])]).unwrap(), [[share(0, 4)], [share(0, 8)]]);
        assert_eq!(shares(&[(&alone, &on(&["0", "0"]))]).unwrap(), [[None, None]], "as ever without `memory_mib`");
    }

    #[test]
    fn who_cannot_share_is_named() {
        let a = model("a", Some(4));
        let alone = model("c", None);
        let mixed = shares(&[(&alone, &on(&["0"])), (&a, &on(&["0"]))]).expect_err("c says nothing of its memory");
        assert!(mixed.starts_with("c: others share device 0 (`memory_mib`): give c `memory_mib` as well"), "{mixed}");
        let machine = shares(&[(&a, &[None]), (&alone, &[None])]).expect_err("c says nothing of its memory");
        assert!(machine.contains("others share the machine"), "{machine}");
        let twice = shares(&[(&a, &on(&["0", "0"]))]).expect_err("two handlers of one model");
        assert!(twice.contains("has one handler on a device, and this has several on device 0"), "{twice}");
    }

    #[test]
    fn memory_that_cannot_do_is_refused() {
        let settings = |memory_mib, lookahead| Settings { memory_mib, lookahead, ..Settings::default() };
        let cases = [
            (settings(None, 1), vec![model("a", Some(4))], "must say how many MiB"),
            (settings(Some(8), 1), vec![model("a", None)], "no element of host.models has `memory_mib`"),
            (settings(Some(8), 1), vec![model("a", Some(9))], "a: memory_mib 9 is more than the 8"),
            (settings(Some(8), 1), vec![model("a", Some(0))], "a: memory_mib must be at least 1"),
            (settings(None, 0), Vec::new(), "must be at least 1"),
        ];
        for (settings, models, says) in cases {
            let problem = settings.check(&models).expect_err(says).1;
            assert!(problem.contains(says), "{problem} does not say {says:?}");
        }
        assert!(settings(Some(8), 1).check(&[model("a", Some(8)), model("b", None)]).is_ok());
    }
}
