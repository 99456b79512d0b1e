//! Steps that became CUDA graphs are the same steps: whatever their inputs, LoRAs and neighbours, and however many there are. On a CPU there are none.

use std::fs;
use std::sync::{Arc, OnceLock};

use atelier_engine::graphs::GraphCounts;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{Engine, EngineError, GenerateRequest, LoraFile, Sampling, Watch};
use candle_core::{DType, Device, Tensor};

use super::{fixtures, lora, request};
use crate::own_device;

/// The fixture with graphs, and without.
fn with_and_without(dtype: DType, memory_budget: Option<u64>) -> [StableDiffusion; 2] {
    let device = own_device();
    [true, false].map(|graphs| {
        let settings = Settings { graphs, memory_budget, ..Settings::new(fixtures().join("sd15"), dtype, device.clone()) };
        StableDiffusion::load(&settings).expect("the fixture loads")
    })
}

fn drawn(shape: (usize, usize, usize, usize), device: &Device) -> Tensor {
    Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).unwrap().to_device(device).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The base tensors as they are now, byte by byte.
fn base(engine: &StableDiffusion) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("packed");
    engine.pack(&to).unwrap();
    let files = fs::read_dir(to).unwrap().map(|entry| entry.unwrap().path());
    let packed = files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    packed.flat_map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_replay_is_the_step_itself_whatever_its_inputs_are() {
    for dtype in [DType::F32, DType::F16] {
        let [with, without] = with_and_without(dtype, None);
        let device = own_device_of(&with);
        let inversions = Inversions::default();
        let mut replays = 0;
        let texts = ["a red lighthouse", "two boats at night"].map(|prompt| {
            [None, Some("a blur")].map(|negative| with.encode_prompt(prompt, negative, &inversions).expect("text"))
        });
        // Each kind of step comes again after the others, with everything else that it looks at changed.
        for round in 0..3_u32 {
            for text in &texts {
                for (side, guided) in [(8, false), (8, true), (12, true)] {
                    let latents = drawn((1, 4, 8, side), &device);
                    let scale = 1.5 + 2.5 * f64::from(round);
                    let timestep = 999.0 - 333.25 * f64::from(round);
                    let predict = |engine: &StableDiffusion| {
                        let text = &text[usize::from(guided)];
                        bits(&engine.predict_noise(&latents, timestep, text, scale, Tiling::default()).expect("noise"))
                    };
                    assert!(predict(&with) == predict(&without), "{dtype:?}, {side}, guided {guided}, round {round}");
                    replays += 1;
                }
            }
        }
        let counts = with.graph_counts();
        if device.is_cuda() {
            assert_eq!(counts, GraphCounts { kept: 3, captured: 3, launched: replays - 3, refused: 0 });
        } else {
            assert_eq!(counts, GraphCounts::default());
        }
        assert_eq!(without.graph_counts(), GraphCounts::default());
    }
}

fn own_device_of(engine: &StableDiffusion) -> Device {
    let text = engine.encode_prompt("", None, &Inversions::default()).expect("text");
    text.positive.states.device().clone()
}

#[test]
fn a_hundred_changes_of_loras_leave_the_model_as_it_is_and_capture_little() {
    let [mut with, mut without] = with_and_without(DType::F16, None);
    let before = base(&with);
    let file = |name: &str, scale: f64| LoraFile { scale, ..lora(fixtures().join("loras").join(name)) };
    let latents = drawn((1, 4, 4, 8), &own_device_of(&with));
    let mut sets: Vec<String> = Vec::new();
    let mut steps = 0;
    for change in 0..100_u32 {
        let scale = 0.25 + 0.125 * f64::from(change % 11);
        let names = ["peft.safetensors", "kohya.safetensors"];
        let name = names[usize::from(change >= 50)];
        let loras = match change % 5 {
            4 => vec![],
            3 => vec![file(name, scale), file(name, -0.5)],
            _ => vec![file(name, scale)],
        };
        if !loras.is_empty() && sets.last().is_none_or(|last| last != name) {
            sets.push(name.to_owned());
        }
        // One over other tensors in between: what comes then is built anew, and nothing is filled in.
        without.use_loras(&[file(names[usize::from(change < 50)], 1.0)]).expect("the LoRA");
        let noise = [&mut with, &mut without].map(|engine| {
            engine.use_loras(&loras).expect("the LoRAs");
            let text = engine.encode_prompt("a red lighthouse", None, &Inversions::default()).expect("text");
            bits(&engine.predict_noise(&latents, 500.0, &text, 1.0, Tiling::default()).expect("noise"))
        });
        assert!(noise[0] == noise[1], "change {change}: {loras:?}");
        steps += 1;
    }
    assert!(base(&with) == before, "a base tensor has changed");
    let counts = with.graph_counts();
    if crate::device().is_cuda() {
        // Without LoRAs, and once for each set of tensors that is laid over: not for each LoRA.
        let captured = 1 + sets.len() as u64;
        assert_eq!(counts, GraphCounts { kept: 2, captured, launched: steps - captured, refused: 0 });
    }
}

#[test]
fn whole_images_are_the_same_and_batches_may_shrink() {
    let [mut with, mut without] = with_and_without(DType::F32, None);
    let of = |sampling: Sampling, seeds: Vec<u64>, guidance_scale| GenerateRequest {
        sampling,
        seeds,
        guidance_scale,
        steps: 4,
        ..request(vec![])
    };
    let rescaled = Sampling { guidance_rescale: 0.7, ..Sampling::default() };
    for request in [
        of(Sampling::default(), vec![1], 7.5),
        of(Sampling::default(), vec![2, 3], 3.0),
        of(rescaled, vec![2, 3], 5.0),
        of(Sampling::default(), vec![4], 1.0),
        of(Sampling::default(), vec![5], 9.0),
    ] {
        let images = [&mut with, &mut without].map(|engine| engine.generate(&request, &Watch::new(|_| ())).expect("images"));
        assert!(images[0] == images[1], "{:?}, scale {}", request.seeds, request.guidance_scale);
    }
    if crate::device().is_cuda() {
        // One image, two, two with spread taken back, one without guidance.
        assert_eq!(with.graph_counts(), GraphCounts { kept: 4, captured: 4, launched: 16, refused: 0 });
    }
}

#[test]
fn a_generation_is_cancelled_between_two_replays() {
    let [mut with, _] = with_and_without(DType::F32, None);
    let request = GenerateRequest { steps: 8, ..request(vec![]) };
    with.generate(&request, &Watch::new(|_| ())).expect("images");
    let before = with.graph_counts().launched;
    let own: Arc<OnceLock<Watch>> = Arc::default();
    let handle = Arc::clone(&own);
    let watch = Watch::new(move |progress| {
        if progress.step == 3 {
            handle.get().expect("set below").cancel();
        }
    });
    own.set(watch.clone()).ok().expect("set once");
    assert!(matches!(with.generate(&request, &watch), Err(EngineError::Cancelled)));
    if crate::device().is_cuda() {
        assert_eq!(with.graph_counts().launched - before, 3);
    }
}

#[test]
fn as_many_graphs_are_kept_as_there_is_memory_for() {
    let [unbounded, _] = with_and_without(DType::F32, None);
    let budget = unbounded.resident_bytes() + (1 << 30);
    drop(unbounded);
    let [with, without] = with_and_without(DType::F32, Some(budget));
    let device = own_device_of(&with);
    let text = with.encode_prompt("a red lighthouse", None, &Inversions::default()).expect("text");
    // A quarter of a GiB is for graphs, and each counts as 128 MiB at least.
    for side in [8, 12, 16, 8, 16, 20, 8] {
        let latents = drawn((1, 4, side, 8), &device);
        let noise = [&with, &without]
            .map(|engine| bits(&engine.predict_noise(&latents, 500.0, &text, 1.0, Tiling::default()).expect("noise")));
        assert!(noise[0] == noise[1], "{side}");
        assert!(with.graph_counts().kept <= 2);
    }
    if device.is_cuda() {
        // Each of the four sizes once, and 8 again whenever two others came between.
        assert_eq!(with.graph_counts(), GraphCounts { kept: 2, captured: 6, launched: 1, refused: 0 });
    }
}
