//! Whether there is a GPU that this build can generate on, and whether the model fits into it.

use super::aside;
use super::finding::Finding;
use super::models::files;
use crate::config::{Config, Environment};
use crate::metrics::gpu::{Card, Machine, inspect};
use atelier_engine::device::{self, Build};

const CHECK: &str = "gpu";

pub(super) async fn check(config: &Config, environment: &Environment) -> Finding {
    let Build::Cuda { compute_cap, flash_attention } = device::build() else {
        return Finding::skip(CHECK, "this build generates on the CPU (no feature cuda)");
    };
    let how = "install NVIDIA's driver, and give the container its GPUs (--gpus all, nvidia.com/gpu)";
    let machine = match aside(inspect).await {
        Some(Ok(machine)) => machine,
        Some(Err(problem)) => return Finding::fail(CHECK, format!("NVML: {problem}"), how),
        None => return Finding::fail(CHECK, "NVML could not be asked", how),
    };
    let weights = config.manifest(environment).ok().and_then(|manifest| files(&manifest, config).ok());
    let weights_bytes = weights.map_or(0, |files| files.iter().map(|(_, bytes)| bytes).sum());
    let needed_bytes = config.engine.memory_budget_mib.map_or(weights_bytes, |mib| mib.saturating_mul(1 << 20));
    judge(&machine, (compute_cap, flash_attention), needed_bytes)
}

/// `compute_cap`: what the kernels were compiled for, as `80`; drivers translate them for newer GPUs, never for older ones, and flash
/// attention's not at all.
fn judge(machine: &Machine, (compute_cap, flash_attention): (Option<&str>, bool), needed_bytes: u64) -> Finding {
    let Some(card) = machine.cards.first() else {
        return Finding::fail(
            CHECK,
            format!("driver {}, and no GPU", machine.driver),
            "give the container its GPUs (--gpus all, nvidia.com/gpu)",
        );
    };
    let Card { name, memory_bytes, free_bytes, compute: (major, minor) } = card;
    let all = memory_bytes >> 20;
    let free = free_bytes >> 20;
    let about = format!(
        "{} x {name}, driver {}, compute capability {major}.{minor}, {free} of {all} MiB free",
        machine.cards.len(),
        machine.driver
    );
    let Some(built) = compute_cap.and_then(|cap| cap.parse::<u32>().ok()) else {
        return Finding::warn(
            CHECK,
            format!("{about}; this build does not say what it was compiled for"),
            "build with CUDA_COMPUTE_CAP=80, or your GPU's number",
        );
    };
    if major * 10 + minor < built {
        let found = format!("{about}; this build is for {}.{} and newer", built / 10, built % 10);
        return Finding::fail(CHECK, found, format!("build with CUDA_COMPUTE_CAP={major}{minor}, or use a newer GPU"));
    }
    if flash_attention && *major != built / 10 {
        let found = format!("{about}; this build's flash attention is for {}.x alone", built / 10);
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
    Finding::ok(CHECK, format!("{about}; built for {}.{}", built / 10, built % 10))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn state(compute: (u32, u32), free_gib: u64, build: (Option<&str>, bool), needed_gib: u64) -> State {
        let card = Card { name: "L4".into(), memory_bytes: 24 << 30, free_bytes: free_gib << 30, compute };
        judge(&Machine { driver: "580.1".into(), cards: vec![card] }, build, needed_gib << 30).state
    }

    #[test]
    fn a_gpu_must_be_new_and_large_enough() {
        assert_eq!(state((8, 9), 24, (Some("80"), false), 6), State::Ok);
        assert_eq!(state((12, 0), 24, (Some("90"), false), 6), State::Ok);
        assert_eq!(state((7, 5), 24, (Some("80"), false), 6), State::Fail);
        assert_eq!(state((8, 9), 24, (None, false), 6), State::Warn);
        assert_eq!(state((8, 9), 24, (Some("80"), false), 40), State::Fail);
        assert_eq!(state((8, 9), 2, (Some("80"), false), 6), State::Warn);
        let flash = (Some("80"), true);
        assert_eq!(state((8, 9), 24, flash, 6), State::Ok);
        assert_eq!(state((9, 0), 24, flash, 6), State::Fail);
        assert_eq!(judge(&Machine { driver: "580.1".into(), cards: Vec::new() }, (Some("80"), false), 0).state, State::Fail);
    }
}
