//! ControlNets that change nothing, that come and go, that share batches and memory, and files that are none.

use std::fs;
use std::path::Path;

use atelier_engine::graphs::GraphCounts;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::controlnet::files::ControlNetFile;
use atelier_engine::sd::settings::Settings;
use atelier_engine::steering::Control;
use atelier_engine::{Engine, EngineError, GenerateRequest, Image, InitImage, QueuedRequest, Request, Watch};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use super::{configured, copy_directory, pieces_are_the_same_images, request};
use crate::parity::controlnets::{files, load};
use crate::parity::stages::largest_step;
use crate::parity::steered::fixtures;
use crate::{device, own_device};

fn drawing(shift: u32) -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| {
        Rgb([(4 * x) as u8, (3 * y + shift) as u8, if (x + y + shift) % 16 < 8 { 255 } else { 0 }])
    })
}

fn control(net: &str) -> Control {
    Control { net: net.into(), image: drawing(0), scale: 1.0, start: 0.0, end: 1.0 }
}

fn with(controls: Vec<Control>) -> GenerateRequest {
    GenerateRequest { controls, steps: 4, ..request(vec![]) }
}

fn images(engine: &mut StableDiffusion, request: &GenerateRequest) -> Vec<Image> {
    engine.generate(request, &Watch::new(|_| ())).expect("images")
}

/// A copy of `from` with what `change` makes of its tensors.
fn changed(from: &Path, to: &Path, change: impl Fn(&str, Tensor) -> Tensor) {
    copy_directory(from, to);
    let file = to.join("diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (name.clone(), change(&name, tensor))).collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
}

#[test]
fn what_adds_nothing_changes_no_bit() {
    let directory = tempfile::tempdir().unwrap();
    let zero = directory.path().join("zero");
    changed(&fixtures().join("controlnets/sd15/canny"), &zero, |name, tensor| {
        let is_last = name.starts_with("controlnet_down_blocks") || name.starts_with("controlnet_mid_block");
        if is_last { tensor.zeros_like().unwrap() } else { tensor }
    });
    let mut nets = files("sd15", &["canny"]);
    nets.push(ControlNetFile { name: "zero".into(), path: zero });
    let mut engine = load("sd15", nets, device());
    let plain = images(&mut load("sd15", vec![], device()), &with(vec![]));
    assert!(images(&mut engine, &with(vec![])) == plain, "ControlNets that nobody asks for");
    for (name, unchanged) in [
        ("a net whose last layers are zero", vec![control("zero")]),
        ("scale 0", vec![Control { scale: 0.0, ..control("canny") }]),
        ("no step within its window", vec![Control { start: 0.3, end: 0.45, ..control("canny") }]),
        ("both", vec![control("zero"), Control { scale: 0.0, ..control("canny") }]),
    ] {
        assert!(images(&mut engine, &with(unchanged)) == plain, "{name}");
    }
    let held = images(&mut engine, &with(vec![control("canny")]));
    assert!(held != plain, "a net that is at work");
    let elsewhere = Control { image: drawing(5), ..control("canny") };
    assert!(images(&mut engine, &with(vec![elsewhere])) != held, "another image");
    assert!(images(&mut engine, &with(vec![control("canny"), control("zero")])) == held, "a sum with nothing");
}

#[test]
fn controls_come_and_go_and_nothing_of_them_stays() {
    let device = own_device();
    let load = |graphs| {
        let settings = Settings {
            controlnets: files("sd15", &["canny", "depth"]),
            graphs,
            ..Settings::new(fixtures().join("sd/sd15"), DType::F32, device.clone())
        };
        StableDiffusion::load(&settings).expect("loads")
    };
    let mut graphs = load(true);
    let early = || Control { end: 0.5, ..control("canny") };
    let late = |scale| Control { start: 0.5, scale, ..control("depth") };
    // One after the other in the same engine, each of them alone in a fresh one.
    let requests = [
        with(vec![early()]),
        with(vec![]),
        with(vec![early(), late(1.0)]),
        with(vec![Control { image: drawing(3), ..early() }, late(0.25)]),
        with(vec![control("depth"), control("canny")]),
        with(vec![control("canny"), control("depth")]),
        with(vec![]),
        with(vec![early()]),
    ];
    for (place, request) in requests.iter().enumerate() {
        assert!(images(&mut graphs, request) == images(&mut load(false), request), "request {place}");
    }
    if device.is_cuda() {
        // Plain, canny, depth, and both in each order: whatever their images, scales and windows are.
        let GraphCounts { kept, captured, refused, .. } = graphs.graph_counts();
        assert_eq!((kept, captured, refused), (5, 5, 0));
    }
}

#[test]
fn a_batch_has_the_same_controls_and_pieces_are_the_same_images() {
    let mut engine = load("sd15", files("sd15", &["canny", "depth"]), device());
    let controls = vec![control("canny"), Control { scale: 0.5, end: 0.75, ..control("depth") }];
    let of = |prompt: &str, seeds: Vec<u64>| GenerateRequest { prompt: prompt.into(), seeds, ..with(controls.clone()) };
    let requests = [of("a red lighthouse", vec![7, 8]), of("two boats", vec![9])];
    assert!(Request::Generate(requests[0].clone()).agrees_with(&Request::Generate(requests[1].clone())));
    let other = GenerateRequest { controls: vec![Control { image: drawing(1), ..control("canny") }], ..requests[1].clone() };
    assert!(!Request::Generate(requests[0].clone()).agrees_with(&Request::Generate(other)), "another image is another batch");
    let queued: Vec<QueuedRequest> = requests
        .iter()
        .map(|request| QueuedRequest { request: Request::Generate(request.clone()), watch: Watch::new(|_| ()) })
        .collect();
    let together: Vec<Vec<Image>> =
        engine.generate_together(&queued).expect("a batch").into_iter().map(|one| one.expect("images")).collect();
    for (request, together) in requests.iter().zip(&together) {
        let alone: Vec<Image> = images(&mut engine, request);
        for (one, another) in alone.iter().zip(together) {
            assert!(largest_step(&one.rgb, &another.rgb) <= 1);
        }
    }
    pieces_are_the_same_images(&requests[0], |memory_budget| {
        let controlnets = files("sd15", &["canny", "depth"]);
        Settings { controlnets, memory_budget, ..Settings::new(fixtures().join("sd/sd15"), DType::F32, device()) }
    });
}

#[test]
fn controlnets_are_resident_and_warm() {
    let plain = load("sd15", vec![], device());
    let mut with_nets = load("sd15", files("sd15", &["canny", "depth"]), device());
    let file = |name: &str| {
        fs::metadata(fixtures().join("controlnets/sd15").join(name).join("diffusion_pytorch_model.safetensors")).unwrap().len()
    };
    let more = with_nets.resident_bytes() - plain.resident_bytes();
    // Kept in f16, loaded in f32; the header of the file has no tensors in it.
    let at_most = 2 * (file("canny") + file("depth"));
    assert!((at_most - 2 * (64 << 10)..=at_most).contains(&more), "{more} of {at_most}");
    with_nets.warm_up().expect("a step with each");
}

#[test]
fn a_control_that_cannot_be_is_refused_in_words() {
    let mut engine = load("sd15", files("sd15", &["canny", "depth"]), device());
    let mut refused =
        |control: Control| engine.generate(&with(vec![control]), &Watch::new(|_| ())).expect_err("refused").to_string();
    assert_eq!(refused(control("openpose")), "controlnets: this model has no ControlNet \"openpose\"; it has canny, depth");
    let small = Control { image: RgbImage::new(64, 56), ..control("canny") };
    assert_eq!(refused(small), "controlnets: an image must have the size of the job, 64x64, got 64x56");
    let directory = tempfile::tempdir().unwrap();
    copy_directory(&fixtures().join("sd/sd15"), directory.path());
    copy_directory(&fixtures().join("sd-variants/instructed/unet"), &directory.path().join("unet"));
    let start = Some(InitImage { rgb: drawing(0), mask: None });
    let edit = GenerateRequest { start, ..with(vec![control("canny")]) };
    let mut edits = StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).expect("loads");
    let error = edits.generate(&edit, &Watch::new(|_| ())).expect_err("refused").to_string();
    assert!(error.starts_with("controlnets: cannot be used with a model that edits images"), "{error}");
    let mut none = load("sd15", vec![], device());
    let error = none.generate(&with(vec![control("canny")]), &Watch::new(|_| ())).expect_err("refused").to_string();
    assert_eq!(error, "controlnets: this model has no ControlNet \"canny\"; it has none");
}

#[test]
fn what_is_no_controlnet_of_the_model_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let canny = fixtures().join("controlnets/sd15/canny");
    let with_config = |name: &str, key: &str, value: &str| {
        let copy = directory.path().join(name);
        configured(&fixtures().join("controlnets/sd15/canny"), &copy, key, value);
        copy
    };
    let with_tensor = |name: &str| {
        let file = directory.path().join(format!("{}.safetensors", name.replace('.', "-")));
        let mut tensors =
            candle_core::safetensors::load(canny.join("diffusion_pytorch_model.safetensors"), &Device::Cpu).unwrap();
        tensors.insert(name.to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, &file).unwrap();
        file
    };
    for (path, words) in [
        (
            with_config("union", "_class_name", "\"ControlNetUnionModel\""),
            "_class_name is \"ControlNetUnionModel\"; supported: \"ControlNetModel\"",
        ),
        (with_config("classes", "num_class_embeds", "3"), "num_class_embeds is 3; supported: null"),
        (with_config("pool", "global_pool_conditions", "true"), "global_pool_conditions is true; supported: false"),
        (
            with_config("widths", "block_out_channels", "[16, 24, 64]"),
            "block_out_channels is [16, 24, 64], but the model's UNet has [16, 24, 32]",
        ),
        (with_config("text", "cross_attention_dim", "48"), "cross_attention_dim is 48, but the model's UNet has 24"),
        (with_config("hints", "conditioning_embedding_out_channels", "[4, 6, 8]"), "has 3 numbers, but must have 4"),
        (with_config("heads", "attention_head_dim", "0"), "attention_head_dim must not be 0"),
        (
            with_config("layers", "conditioning_embedding_out_channels", "[4, 6, 8, 13]"),
            "controlnet_cond_embedding.blocks.5.weight",
        ),
        (with_tensor("lora_controlnet"), "is a Control-LoRA"),
        (with_tensor("difference"), "holds the difference to a base model"),
        (with_tensor("task_embedding"), "is a ControlNet Union"),
        (
            fixtures().join("controlnets/sdxl/canny"),
            "is a ControlNet of Stable Diffusion XL, and the model is of Stable Diffusion 1 or 2",
        ),
        (
            fixtures().join("controlnets/sdxl/canny/diffusion_pytorch_model.safetensors"),
            "is a ControlNet of Stable Diffusion XL with a width of 8",
        ),
        (fixtures().join("sd/loras/kohya.safetensors"), "holds no ControlNet"),
        (fixtures().join("sd/sd15/unet"), "_class_name is \"UNet2DConditionModel\""),
        (directory.path().join("absent.safetensors"), "absent.safetensors"),
    ] {
        let controlnets = vec![ControlNetFile { name: "canny".into(), path: path.clone() }];
        let settings = Settings { controlnets, ..Settings::new(fixtures().join("sd/sd15"), DType::F32, device()) };
        let error = StableDiffusion::load(&settings).err().expect("refused");
        assert!(
            matches!(error, EngineError::Checkpoint { .. }) && error.to_string().contains(words),
            "{}: {error}",
            path.display()
        );
    }
}

#[test]
fn a_controlnet_with_a_nan_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nan");
    changed(&fixtures().join("controlnets/sd15/canny"), &path, |name, tensor| {
        if name == "controlnet_mid_block.weight" { (tensor.to_dtype(DType::F32).unwrap() * f64::NAN).unwrap() } else { tensor }
    });
    let mut engine = load("sd15", vec![ControlNetFile { name: "broken".into(), path }], device());
    let error = engine.generate(&with(vec![control("broken")]), &Watch::new(|_| ())).expect_err("no image").to_string();
    assert!(error.contains("the ControlNet broken") && error.contains("its tensor controlnet_mid_block.weight"), "{error}");
}
