//! What the engine computes against what diffusers computed from the same files (`tests/oracle/make_fixtures.py`).
//!
//! `cargo test -p atelier-engine parity -- --nocapture` prints the figures.

mod adapter_files;
mod canny;
pub(crate) mod classifiers;
pub(crate) mod controlnets;
pub(crate) mod flow;
mod flow_starts;
mod flux;
mod flux2;
mod gguf;
mod half;
mod images;
pub(crate) mod ip_adapters;
mod loras;
mod names;
mod prompts;
mod qwen;
mod qwen_family;
mod qwen_text;
mod samplers;
mod schedules;
pub(crate) mod sdxl;
pub(crate) mod sdxl_adapters;
pub(crate) mod segmenter;
pub(crate) mod stages;
mod starts;
pub(crate) mod steered;
mod step_cache;
mod tiles;
pub(crate) mod tiny_edit;
pub(crate) mod upscalers;
mod variants;
mod z_image;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use candle_core::{DType, Tensor};

use crate::device;

/// Largest difference over the largest reference value, in f32, of one stage.
const STAGE: RelativeError = RelativeError(1e-4);
/// Of a schedule's tables and steps.
const SCHEDULE: RelativeError = RelativeError(1e-5);
/// Of a finished image, in steps of 8 bits.
const PIXEL: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct RelativeError(f64);

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sd")
}

fn engine(checkpoint: &str) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(fixtures().join(checkpoint), DType::F32, device())).expect("the fixture loads")
}

/// The reference tensors in one file of the fixtures.
pub(crate) struct Reference(HashMap<String, Tensor>);

impl Reference {
    fn read(name: &str) -> Self {
        Self::open(&fixtures().join(format!("{name}.safetensors")))
    }

    pub(crate) fn open(file: &Path) -> Self {
        Self(candle_core::safetensors::load(file, &device()).expect("the reference loads"))
    }

    pub(crate) fn get(&self, key: &str) -> &Tensor {
        self.0.get(key).unwrap_or_else(|| panic!("the reference has no {key}; run its script in tests/oracle"))
    }
}

/// The largest figure of a stage over all its cases, printed when the stage is through.
struct Stage {
    name: String,
    worst: f64,
    case: String,
    cases: usize,
}

impl Stage {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), worst: 0.0, case: String::new(), cases: 0 }
    }

    /// Notes how far `ours` is from `reference`; shapes must be equal.
    fn compare(&mut self, case: &str, ours: &Tensor, reference: &Tensor) {
        assert_eq!(ours.dims(), reference.dims(), "{}: {case}", self.name);
        self.note(case, relative_error(&values(ours), &values(reference)));
    }

    fn note(&mut self, case: &str, error: f64) {
        self.cases += 1;
        if error.is_nan() || error > self.worst {
            self.worst = error;
            case.clone_into(&mut self.case);
        }
    }

    #[expect(clippy::print_stdout, reason = "the table is what the command is for")]
    fn finish(self, tolerance: RelativeError) {
        let Self { name, worst, case, cases } = self;
        println!("parity  {name:<36} {worst:>8.1e} of {:.0e}  {cases:>4} cases, worst {case}", tolerance.0);
        assert!(worst <= tolerance.0, "{name}: relative error {worst:e} beyond {:e} in {case}", tolerance.0);
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_device(&candle_core::Device::Cpu)
        .and_then(|tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1())
        .expect("values")
}

fn relative_error(ours: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(ours.len(), reference.len(), "lengths differ");
    let largest = reference.iter().fold(0.0_f64, |largest, number| largest.max(number.abs()));
    let pairs = ours.iter().zip(reference);
    let difference = pairs.map(|(ours, reference)| (ours - reference).abs());
    // `max` would swallow a NaN.
    difference.fold(0.0_f64, |worst, error| if error > worst || error.is_nan() { error } else { worst })
        / largest.max(f64::MIN_POSITIVE)
}
