//! Image prompts that change nothing, that come and go, that share batches and memory, and files that are no IP-Adapters of a model.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::graphs::GraphCounts;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::ip_adapter::files::IpAdapterFile;
use atelier_engine::sd::settings::Settings;
use atelier_engine::steering::ImagePrompt;
use atelier_engine::step_cache::StepCache;
use atelier_engine::{Engine, EngineError, GenerateRequest, Image, LoraFile, QueuedRequest, Request, Sampling, Watch};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use super::{configured, copy_directory, pieces_are_the_same_images, request};
use crate::parity::ip_adapters::files;
use crate::parity::stages::largest_step;
use crate::parity::steered::fixtures;
use crate::{device, own_device};

fn drawing(shift: u32) -> RgbImage {
    RgbImage::from_fn(50, 40, |x, y| {
        Rgb([(5 * x) as u8, (6 * y + shift) as u8, if (x + y + shift) % 16 < 8 { 255 } else { 0 }])
    })
}

fn prompt(adapter: &str) -> ImagePrompt {
    ImagePrompt { adapter: adapter.into(), images: vec![drawing(0)], scale: 1.0 }
}

fn with(image_prompts: Vec<ImagePrompt>) -> GenerateRequest {
    GenerateRequest { image_prompts, steps: 4, ..request(vec![]) }
}

fn settings(ip_adapters: Vec<IpAdapterFile>) -> Settings {
    Settings { ip_adapters, ..Settings::new(fixtures().join("sd/sd15"), DType::F32, device()) }
}

fn load(ip_adapters: Vec<IpAdapterFile>) -> StableDiffusion {
    StableDiffusion::load(&settings(ip_adapters)).expect("loads")
}

fn images(engine: &mut StableDiffusion, request: &GenerateRequest) -> Vec<Image> {
    engine.generate(request, &Watch::new(|_| ())).expect("images")
}

/// A copy of a tensor file with what `change` makes of it.
fn changed(from: &Path, to: PathBuf, change: impl Fn(&str, Tensor) -> Option<(String, Tensor)>) -> PathBuf {
    let tensors = candle_core::safetensors::load(from, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().filter_map(|(name, tensor)| change(&name, tensor)).collect();
    candle_core::safetensors::save(&tensors, &to).unwrap();
    to
}

/// What a file gets in place of a tensor; none: nothing.
type Change<'a> = &'a dyn Fn(&str, Tensor) -> Option<(String, Tensor)>;

#[test]
fn what_adds_nothing_changes_no_bit() {
    let directory = tempfile::tempdir().unwrap();
    let mut adapters = files("sd15");
    let zero = changed(&adapters[0].path, directory.path().join("zero.safetensors"), |name, tensor| {
        Some((name.to_owned(), if name.ends_with("to_v_ip.weight") { tensor.zeros_like().unwrap() } else { tensor }))
    });
    adapters.push(IpAdapterFile { name: "zero".into(), path: zero, ..adapters[0].clone() });
    let mut engine = load(adapters);
    let plain = images(&mut load(vec![]), &with(vec![]));
    assert!(images(&mut engine, &with(vec![])) == plain, "IP-Adapters that nobody asks for");
    for (name, unchanged) in [
        ("values of zero", vec![prompt("zero")]),
        ("scale 0", vec![ImagePrompt { scale: 0.0, ..prompt("plus") }]),
        ("both", vec![ImagePrompt { scale: 0.0, ..prompt("plain") }, prompt("zero")]),
    ] {
        assert!(images(&mut engine, &with(unchanged)) == plain, "{name}");
    }
    let seen = images(&mut engine, &with(vec![prompt("plain")]));
    assert!(seen != plain, "an image that is seen");
    assert!(
        images(&mut engine, &with(vec![ImagePrompt { images: vec![drawing(5)], ..prompt("plain") }])) != seen,
        "another image"
    );
    assert!(images(&mut engine, &with(vec![prompt("plain"), prompt("zero")])) == seen, "a sum with nothing");
}

#[test]
fn image_prompts_come_and_go_and_nothing_of_them_stays() {
    let device = own_device();
    let load = |graphs| {
        let settings = Settings {
            ip_adapters: files("sd15"),
            graphs,
            ..Settings::new(fixtures().join("sd/sd15"), DType::F32, device.clone())
        };
        StableDiffusion::load(&settings).expect("loads")
    };
    let mut graphs = load(true);
    let lora = LoraFile::new(fixtures().join("sd/loras/kohya.safetensors"), 0.8);
    let two = ImagePrompt { images: vec![drawing(1), drawing(2)], ..prompt("plain") };
    // One after the other in the same engine, each of them alone in a fresh one.
    let requests = [
        with(vec![prompt("plain")]),
        with(vec![]),
        with(vec![ImagePrompt { images: vec![drawing(3)], scale: 0.25, ..prompt("plain") }]),
        with(vec![two]),
        with(vec![prompt("plus")]),
        with(vec![prompt("plus"), prompt("plain")]),
        with(vec![]),
        GenerateRequest { loras: vec![lora], ..with(vec![prompt("plain")]) },
        with(vec![prompt("plain")]),
    ];
    for (place, request) in requests.iter().enumerate() {
        assert!(images(&mut graphs, request) == images(&mut load(false), request), "request {place}");
    }
    if device.is_cuda() {
        // Plain, one image, two images, Plus, Plus and one, and one image with the LoRA: whatever the images and scales are.
        let GraphCounts { kept, captured, refused, .. } = graphs.graph_counts();
        assert_eq!((kept, captured, refused), (6, 6, 0));
    }
}

#[test]
fn each_request_of_a_batch_has_images_of_its_own() {
    let mut engine = load(files("sd15"));
    let prompts = |shift| {
        let plain = ImagePrompt { images: vec![drawing(shift), drawing(7)], scale: 0.8, ..prompt("plain") };
        vec![plain, ImagePrompt { images: vec![drawing(shift + 20)], scale: 0.5, ..prompt("plus") }]
    };
    let of = |prompt: &str, seeds: Vec<u64>, shift| GenerateRequest { prompt: prompt.into(), seeds, ..with(prompts(shift)) };
    let requests = [of("a red lighthouse", vec![7, 8], 0), of("a red lighthouse", vec![7], 40)];
    let agree = |one: &GenerateRequest, another: &GenerateRequest| {
        Request::Generate(one.clone()).agrees_with(&Request::Generate(another.clone()))
    };
    assert!(agree(&requests[0], &requests[1]), "other images");
    let [first, second] = prompts(0).try_into().expect("two");
    for (name, other) in [
        ("none", vec![]),
        ("one of them", vec![first.clone()]),
        ("in another order", vec![second.clone(), first.clone()]),
        ("another scale", vec![ImagePrompt { scale: 0.9, ..first.clone() }, second.clone()]),
        ("more images", vec![first, ImagePrompt { images: vec![drawing(0), drawing(1)], ..second }]),
    ] {
        assert!(!agree(&requests[0], &GenerateRequest { image_prompts: other, ..requests[1].clone() }), "{name}");
    }
    let alone = requests.each_ref().map(|request| images(&mut engine, request));
    assert!(largest_step(&alone[0][0].rgb, &alone[1][0].rgb) > 8, "the images alone tell them apart");
    let queued = requests
        .each_ref()
        .map(|request| QueuedRequest { request: Request::Generate(request.clone()), watch: Watch::new(|_| ()) });
    let together = engine.generate_together(&queued).expect("a batch");
    for (alone, together) in alone.iter().flatten().zip(together.into_iter().flat_map(|one| one.expect("images"))) {
        assert!(largest_step(&alone.rgb, &together.rgb) <= 1);
    }
    // One that leaves takes its images with it.
    let [stays, leaves] = &queued;
    leaves.watch.cancel();
    let [one, other] = engine.generate_together(&[leaves.clone(), stays.clone()]).expect("a batch").try_into().expect("two");
    assert!(matches!(one, Err(EngineError::Cancelled)));
    assert!(alone[0].iter().zip(other.expect("images")).all(|(one, another)| largest_step(&one.rgb, &another.rgb) <= 1));
}

#[test]
fn rows_one_by_one_are_the_same_images() {
    let asked =
        GenerateRequest { seeds: vec![7, 8], ..with(vec![prompt("plain"), ImagePrompt { scale: 0.5, ..prompt("plus") }]) };
    pieces_are_the_same_images(&asked, |memory_budget| Settings { memory_budget, ..settings(files("sd15")) });
}

#[test]
fn an_image_encoder_is_resident_once_and_warm() {
    let plain = load(vec![]).resident_bytes();
    let mut both = load(files("sd15"));
    let bytes = |path: PathBuf| fs::metadata(path).unwrap().len();
    let encoder = bytes(fixtures().join("ip_adapters/image_encoder/model.safetensors"));
    let more = both.resident_bytes() - plain;
    // Kept in f16, loaded in f32; the headers of the files have no tensors in them.
    let at_most = 2 * (encoder + files("sd15").into_iter().map(|file| bytes(file.path)).sum::<u64>());
    assert!((at_most - 2 * (32 << 10)..=at_most).contains(&more), "{more} of {at_most}");
    both.warm_up().expect("a step with each");
}

#[test]
fn image_prompts_go_with_step_caching() {
    let mut engine = load(files("sd15"));
    let asked = |interval, image_prompts| {
        let step_cache = Some(StepCache::Interval(interval));
        GenerateRequest { sampling: Sampling { step_cache, ..Sampling::default() }, steps: 6, ..with(image_prompts) }
    };
    let every_step = images(&mut engine, &GenerateRequest { steps: 6, ..with(vec![prompt("plain")]) });
    let cached = images(&mut engine, &asked(3, vec![prompt("plain")]));
    assert!(cached != every_step && cached != images(&mut engine, &asked(3, vec![])), "taken over, with the images in it");
    // Where little is left out little changes, so a look of the outermost layers sees what a complete one does.
    let distance = |one: &[Image], other: &[Image]| {
        let pairs = one[0].rgb.iter().zip(&other[0].rgb);
        pairs.map(|(one, other)| f64::from(one.abs_diff(*other))).sum::<f64>() / one[0].rgb.len() as f64
    };
    let without = images(&mut engine, &GenerateRequest { steps: 6, ..with(vec![]) });
    assert!(distance(&cached, &every_step) < distance(&without, &every_step));
}

#[test]
fn an_image_prompt_that_cannot_be_is_refused_in_words() {
    let mut engine = load(files("sd15"));
    let mut refused =
        |prompt: ImagePrompt| engine.generate(&with(vec![prompt]), &Watch::new(|_| ())).expect_err("refused").to_string();
    assert_eq!(refused(prompt("face")), "ip_adapters: this model has no IP-Adapter \"face\"; it has plain, plus");
    let without = "ip_adapters: the IP-Adapter plain needs an image or more, each with pixels";
    assert_eq!(refused(ImagePrompt { images: vec![], ..prompt("plain") }), without);
    assert_eq!(refused(ImagePrompt { images: vec![drawing(0), RgbImage::new(0, 4)], ..prompt("plain") }), without);
    let error = load(vec![]).generate(&with(vec![prompt("plain")]), &Watch::new(|_| ())).expect_err("refused").to_string();
    assert_eq!(error, "ip_adapters: this model has no IP-Adapter \"plain\"; it has none");
}

/// Loads `file`, and finds `words` in the refusal.
fn refused(file: IpAdapterFile, words: &str) {
    let error = StableDiffusion::load(&settings(vec![file])).err().expect("refused");
    assert!(matches!(error, EngineError::Checkpoint { .. }) && error.to_string().contains(words), "{words}: {error}");
}

#[test]
fn what_is_no_ip_adapter_of_the_model_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, _] = files("sd15").try_into().expect("two");
    let of = |name: &str, change: Change<'_>| {
        let path = changed(&plain.path, directory.path().join(format!("{name}.safetensors")), change);
        IpAdapterFile { path, ..plain.clone() }
    };
    let renamed =
        |from: &'static str, to: &'static str| move |name: &str, tensor: Tensor| Some((name.replace(from, to), tensor));
    let pickle = directory.path().join("ip-adapter_sd15.bin");
    fs::write(&pickle, b"PK\x03\x04 a pickle").unwrap();
    let xl = files("sdxl").remove(0);
    let lora = fixtures().join("sd/loras/kohya.safetensors");
    for (file, words) in [
        (
            IpAdapterFile { path: pickle, ..plain.clone() },
            "is a pickle, which can run code when it is read; save it as .safetensors",
        ),
        (
            xl,
            "is for a UNet with 18 attentions to texts of 32 numbers, and the model's has 7 to texts of 24; take ip-adapter_sd15",
        ),
        (of("sdxl", &renamed("ip_adapter.13.to_k", "ip_adapter.13.other")), "has 7 to texts of 24"),
        (of("face", &renamed("image_proj.proj.", "image_proj.proj.0.")), "is an IP-Adapter FaceID, which looks at embeddings"),
        (of("full", &renamed("image_proj.proj.", "image_proj.proj.3.")), "is an IP-Adapter Full Face"),
        (of("faces", &renamed("image_proj.norm", "perceiver_resampler.norm")), "is an IP-Adapter FaceID Plus"),
        (
            of("numbers", &renamed("ip_adapter.", "ip_adapter.0")),
            "match nothing of the model: ip_adapter.01.to_k_ip.weight; ip_adapter.01.to_v_ip.weight; ip_adapter.011.to_k_ip.weight; \
             ip_adapter.011.to_v_ip.weight; ip_adapter.013.to_k_ip.weight; ip_adapter.013.to_v_ip.weight; ip_adapter.03.to_k_ip.weight; \
             ip_adapter.03.to_v_ip.weight; and 6 more; expected are image_proj.… and ip_adapter.N.to_k_ip.weight and ip_adapter.N.to_v_ip.weight, N being 1, 3 and so \
             on up to 13",
        ),
        (
            of("missing", &|name, tensor| (!name.starts_with("ip_adapter.13.to_v")).then(|| (name.to_owned(), tensor))),
            "ip_adapter.13.to_v_ip.weight [32, 24] is missing",
        ),
        (
            IpAdapterFile { path: lora, ..plain.clone() },
            "holds no IP-Adapter (image_proj.… and ip_adapter.…): its tensors are lora_te_",
        ),
        (IpAdapterFile { path: directory.path().join("absent.safetensors"), ..plain.clone() }, "absent.safetensors"),
    ] {
        refused(file, words);
    }
}

#[test]
fn an_image_encoder_that_is_not_the_adapters_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, plus] = files("sd15").try_into().expect("two");
    for (adapter, key, value, words) in [
        (&plain, "projection_dim", "24", "takes embeddings of 20 numbers, and those of the image encoder"),
        (&plus, "hidden_size", "40", "takes states of 32 numbers, and those of the image encoder"),
        (
            &plain,
            "architectures",
            "[\"CLIPModel\"]",
            "architectures is [\"CLIPModel\"]; the image encoder of an IP-Adapter is [\"CLIPVisionModelWithProjection\"]",
        ),
        (&plain, "image_size", "[32, 40]", "image_size is [32, 40]; it must be one number"),
        (&plain, "num_hidden_layers", "2", "has tensors that config.json knows nothing of: vision_model.encoder.layers.2."),
        (&plain, "num_hidden_layers", "4", "vision_model.encoder.layers.3.layer_norm1.weight [32] is missing"),
    ] {
        let image_encoder = directory.path().join(format!("{key}-{}", value.len()));
        let image_encoder = image_encoder.with_extension(value.chars().filter(char::is_ascii_digit).collect::<String>());
        configured(&fixtures().join("ip_adapters/image_encoder"), &image_encoder, key, value);
        refused(IpAdapterFile { image_encoder, ..adapter.clone() }, words);
    }
    refused(IpAdapterFile { image_encoder: directory.path().join("absent"), ..plain }, "absent/config.json");
}

#[test]
fn an_ip_adapter_or_an_image_encoder_with_a_nan_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, _] = files("sd15").try_into().expect("two");
    let nan = |wanted: &'static str| {
        move |name: &str, tensor: Tensor| {
            let tensor = if name == wanted { (tensor.to_dtype(DType::F32).unwrap() * f64::NAN).unwrap() } else { tensor };
            Some((name.to_owned(), tensor))
        }
    };
    let path = changed(&plain.path, directory.path().join("nan.safetensors"), nan("ip_adapter.13.to_v_ip.weight"));
    let encoder = directory.path().join("encoder");
    copy_directory(&plain.image_encoder, &encoder);
    let weights = encoder.join("model.safetensors");
    changed(&plain.image_encoder.join("model.safetensors"), weights, nan("visual_projection.weight"));
    for (file, words) in [
        (IpAdapterFile { path, ..plain.clone() }, "gave NaN or infinity; its tensor ip_adapter.13.to_v_ip.weight holds some"),
        (IpAdapterFile { image_encoder: encoder, ..plain.clone() }, "the tensor visual_projection.weight of its image encoder"),
    ] {
        let error =
            load(vec![file]).generate(&with(vec![prompt("plain")]), &Watch::new(|_| ())).expect_err("no image").to_string();
        assert!(error.contains("the IP-Adapter plain (") && error.contains(words), "{error}");
    }
}
