//! Whether there is a GPU that this build can generate on, and whether the model fits into it.

use super::aside;
use super::finding::Finding;
use super::models::files;
use crate::config::{Config, Environment};
use crate::host::listed::ListedModel;
use crate::metrics::gpu::{Card, Machine, inspect};
use atelier_engine::device::{self, Architecture, Build, Reach};

const CHECK: &str = "gpu";

pub(super) async fn check(config: &Config, environment: &Environment) -> Finding {
    let build = device::build();
    if build == Build::Cpu {
        return Finding::skip(CHECK, "this build generates on the CPU (no feature cuda)");
    }
    let how = "install NVIDIA's driver, and give the container its GPUs (--gpus all, nvidia.com/gpu)";
    let machine = match aside(inspect).await {
        Some(Ok(machine)) => machine,
        Some(Err(problem)) => return Finding::fail(CHECK, format!("NVML: {problem}"), how),
        None => return Finding::fail(CHECK, "NVML could not be asked", how),
    };
    let models: Vec<u64> = config.of_each_model().iter().map(|own| model_bytes(own, environment)).collect();
    let shared_bytes = config.host.sharing.memory_mib.unwrap_or(0).saturating_mul(1 << 20);
    judge(&machine, build, most_bytes(&models, &config.host.models, shared_bytes))
}

/// What one model is to have: its budget, else room for its weights.
fn model_bytes(own: &Config, environment: &Environment) -> u64 {
    let weights = own.manifest(environment).ok().and_then(|manifest| files(&manifest, own).ok());
    let weights_bytes = weights.map_or(0, |files| files.iter().map(|(_, bytes)| bytes).sum());
    own.engine.memory_budget_mib.map_or(weights_bytes, |mib| mib.saturating_mul(1 << 20))
}

/// What the models need together that share the fullest device. `listed`: empty where there is one model.
/// `shared_bytes`: of those together that take turns at its memory.
fn most_bytes(models: &[u64], listed: &[ListedModel], shared_bytes: u64) -> u64 {
    let devices = listed.iter().flat_map(|model| &model.devices);
    let needed = devices.map(Some).chain([None]).map(|device| {
        let (sharing, alone): (Vec<usize>, Vec<usize>) =
            on(device, models, listed).partition(|place| listed.get(*place).is_some_and(|model| model.memory_mib.is_some()));
        let alone: u64 = alone.into_iter().map(|place| models[place]).sum();
        if sharing.is_empty() { alone } else { alone.saturating_add(shared_bytes) }
    });
    needed.max().unwrap_or(0)
}

/// The places of those on one device; on one that none names, those of the models that name none and so are on all of them.
fn on(device: Option<&String>, models: &[u64], listed: &[ListedModel]) -> impl Iterator<Item = usize> {
    (0..models.len()).filter(move |place| {
        listed.get(*place).is_none_or(|model| model.devices.is_empty() || device.is_some_and(|on| model.devices.contains(on)))
    })
}

/// Drivers translate kernels for newer GPUs where their [`Reach`] allows it, never for older ones, and flash attention's not at all.
fn judge(machine: &Machine, build: Build, needed_bytes: u64) -> Finding {
    let Build::Cuda { architecture, cuda, flash_attention } = build else {
        return Finding::skip(CHECK, "this build generates on the CPU (no feature cuda)");
    };
    let Some(card) = machine.cards.first() else {
        return Finding::fail(
            CHECK,
            format!("driver {}, and no GPU", machine.driver),
            "give the container its GPUs (--gpus all, nvidia.com/gpu)",
        );
    };
    let Card { name, memory_bytes, free_bytes, compute } = card;
    let (major, minor) = compute;
    let all = memory_bytes >> 20;
    let free = free_bytes >> 20;
    let about = format!(
        "{} x {name}, driver {}, compute capability {major}.{minor}, {free} of {all} MiB free",
        machine.cards.len(),
        machine.driver
    );
    if machine.cuda < cuda {
        let known = dotted(machine.cuda);
        let needed = dotted(cuda);
        let found = format!("{about}; the driver knows CUDA {known}, and this build's kernels are of CUDA {needed}");
        return Finding::fail(
            CHECK,
            found,
            format!("install a driver of CUDA {needed} (580 for 13.0), or build with CUDA {known}"),
        );
    }
    let Some(built) = architecture else {
        return Finding::warn(
            CHECK,
            format!("{about}; this build does not say what it was compiled for"),
            "build with CUDA_COMPUTE_CAP=80, or your GPU's number",
        );
    };
    if !built.runs_on(*compute) {
        let found = format!("{about}; this build is for {}", reached(built));
        let how = format!("build with CUDA_COMPUTE_CAP={major}{minor}, or with 80 for every GPU from 8.0 on");
        return Finding::fail(CHECK, found, how);
    }
    if flash_attention && *major != built.compute.0 {
        let found = format!("{about}; this build's flash attention is for {}.x alone", built.compute.0);
        return Finding::fail(
            CHECK,
            found,
            format!("build with CUDA_COMPUTE_CAP={major}{minor}, or with the feature cuda alone"),
        );
    }
    if *memory_bytes < needed_bytes {
        let found = format!("{about}; {} MiB are needed for the weights or engine.memory_budget_mib", needed_bytes >> 20);
        return Finding::fail(CHECK, found, "use a larger GPU or a smaller model, or lower engine.memory_budget_mib");
    }
    if *free_bytes < needed_bytes {
        let found = format!("{about}; {} MiB are needed, and another process has the rest", needed_bytes >> 20);
        return Finding::warn(CHECK, found, "right while atelier itself runs on it; else end what else uses it (nvidia-smi)");
    }
    Finding::ok(CHECK, format!("{about}; built for {}", reached(built)))
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

fn reached(built: Architecture) -> String {
    let from = dotted(built.compute);
    match built.reach {
        Reach::Newer => format!("{from} and newer"),
        Reach::Family => format!("{from} and newer ones of {}.x", built.compute.0),
        Reach::Alone => format!("{from} alone"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    const CUDA: (u32, u32) = (13, 0);

    fn build(cap: &str) -> Build {
        Build::Cuda { architecture: Architecture::parse(cap), cuda: CUDA, flash_attention: false }
    }

    fn flash(cap: &str) -> Build {
        Build::Cuda { architecture: Architecture::parse(cap), cuda: CUDA, flash_attention: true }
    }

    fn judged(compute: (u32, u32), free_gib: u64, cuda: (u32, u32), build: Build, needed_gib: u64) -> Finding {
        let card = Card { name: "L4".into(), memory_bytes: 24 << 30, free_bytes: free_gib << 30, compute };
        judge(&Machine { driver: "580.1".into(), cuda, cards: vec![card] }, build, needed_gib << 30)
    }

    fn state(compute: (u32, u32), free_gib: u64, build: Build, needed_gib: u64) -> State {
        judged(compute, free_gib, CUDA, build, needed_gib).state
    }

    #[test]
    fn a_gpu_must_be_new_and_large_enough() {
        assert_eq!(state((8, 9), 24, build("80"), 6), State::Ok);
        assert_eq!(state((12, 0), 24, build("80"), 6), State::Ok);
        assert_eq!(state((7, 5), 24, build("80"), 6), State::Fail);
        assert_eq!(state((8, 9), 24, build("nothing known"), 6), State::Warn);
        assert_eq!(state((8, 9), 24, build("80"), 40), State::Fail);
        assert_eq!(state((8, 9), 2, build("80"), 6), State::Warn);
        assert_eq!(state((8, 9), 24, flash("80"), 6), State::Ok);
        assert_eq!(state((9, 0), 24, flash("80"), 6), State::Fail);
        let none = Machine { driver: "580.1".into(), cuda: CUDA, cards: Vec::new() };
        assert_eq!(judge(&none, build("80"), 0).state, State::Fail);
    }

    #[test]
    fn models_that_share_a_device_must_fit_it_together() {
        let listed = |devices: &[&str]| ListedModel {
            name: crate::job::task::ModelName::new("m").unwrap(),
            handlers: 0,
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            memory_mib: None,
        };
        assert_eq!(most_bytes(&[5], &[], 0), 5);
        assert_eq!(most_bytes(&[5, 3], &[listed(&["0"]), listed(&["1"])], 0), 5);
        assert_eq!(most_bytes(&[5, 3], &[listed(&["0", "1"]), listed(&["1"])], 0), 8);
        assert_eq!(most_bytes(&[5, 3, 1], &[listed(&["0"]), listed(&["1"]), listed(&[])], 0), 6);
        let sharing = |devices: &[&str]| ListedModel { memory_mib: Some(1), ..listed(devices) };
        let turns = [sharing(&["0"]), sharing(&["0", "1"]), listed(&["1"])];
        assert_eq!(most_bytes(&[5, 3, 2], &turns, 6), 8, "in turns, within what they have together");
    }

    #[test]
    fn kernels_for_hopper_are_for_hopper_alone() {
        assert_eq!(state((9, 0), 24, build("90"), 6), State::Ok);
        for gpu in [(8, 9), (10, 0), (12, 0)] {
            let finding = judged(gpu, 24, CUDA, build("90"), 6);
            assert_eq!(finding.state, State::Fail, "{gpu:?}");
            assert!(format!("{finding:?}").contains("9.0 alone"), "{finding:?}");
        }
    }

    #[test]
    fn a_driver_must_know_the_cuda_version_of_the_kernels() {
        let old = judged((8, 9), 24, (12, 8), build("80"), 6);
        assert_eq!(old.state, State::Fail);
        assert!(format!("{old:?}").contains("knows CUDA 12.8"), "{old:?}");
        assert_eq!(judged((8, 9), 24, (13, 1), build("80"), 6).state, State::Ok);
    }
}
