//! What the parity tests of flow models have in common: fixtures of `tests/oracle/z_image.py`, `flux.py` and `flux2.py`, and whole images.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::flow::engine::{FlowEngine, Settings};
use atelier_engine::flow::family::Family;
use atelier_engine::graphs::GraphCounts;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{Engine as _, EngineError, GenerateRequest, Generated, LoraFile, QueuedRequest, Request, Sampling, Watch};
use candle_core::{DType, Device, IndexOp as _, Tensor};
use serde::Deserialize;

use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, Stage};
use crate::engine::copy_directory;
use crate::{device, own_device};

pub(crate) const SETTINGS: Settings = Settings {
    transformer: None,
    text_encoder: None,
    dtype: DType::F32,
    width_px: 64,
    height_px: 64,
    memory_budget: None,
    graphs: false,
};

#[derive(Deserialize)]
pub(super) struct Cases {
    pub(super) prompts: Vec<String>,
    /// Settings of a scheduler whose shift grows with the image.
    dynamic: serde_json::Value,
    #[serde(rename = "cases")]
    all: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    lora: Option<String>,
    scale: f64,
    steps: u32,
    seeds: Vec<u64>,
    dynamic: bool,
    /// Of an edit: how many it is shown.
    #[serde(default)]
    images: usize,
    width: u32,
    height: u32,
}

impl Cases {
    /// How many images a case is shown.
    pub(super) fn images(&self, number: usize) -> usize {
        self.all[number].images
    }

    /// The cases that are shown some.
    pub(super) fn edits(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|number| self.images(*number) > 0).collect()
    }
}

impl Case {
    fn request(&self, name: &str) -> GenerateRequest {
        let lora = self.lora.iter().map(|file| LoraFile::new(directory(name).join(file), self.scale));
        GenerateRequest {
            prompt: self.prompt.clone(),
            negative_prompt: String::new(),
            loras: lora.collect(),
            embeddings: Vec::new(),
            start: None,
            controls: vec![],
            image_prompts: vec![],
            strength: 1.0,
            steps: self.steps,
            guidance_scale: 1.0,
            scheduler: Scheduler::plain(Sampler::Euler),
            sampling: Sampling::default(),
            mode: None,
            width_px: self.width,
            height_px: self.height,
            seeds: self.seeds.clone(),
        }
    }
}

pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(super) fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(&directory(name), copy.path());
    copy
}

/// The fixture with a shift that grows with the image.
pub(super) fn shifting(name: &str) -> tempfile::TempDir {
    let copy = copied(name);
    let scheduler = cases(name).dynamic.to_string();
    fs::write(copy.path().join("scheduler/scheduler_config.json"), scheduler).expect("writes");
    copy
}

pub(super) fn cases(name: &str) -> Cases {
    let file = fs::read_to_string(directory(name).join("cases.json")).expect("the oracle's script has written it");
    serde_json::from_str(&file).expect("cases")
}

pub(super) fn expected(name: &str) -> Reference {
    Reference::open(&directory(name).join("expected.safetensors"))
}

pub(crate) fn load<F: Family>(directory: &Path, settings: Settings) -> Result<FlowEngine<F>, EngineError> {
    FlowEngine::load(directory, settings, device())
}

/// What the first case of a fixture asks for, which has no LoRA.
pub(crate) fn plain(name: &str) -> GenerateRequest {
    cases(name).all[0].request(name)
}

/// What every case of a fixture asks for.
pub(super) fn requests(name: &str) -> Vec<GenerateRequest> {
    cases(name).all.iter().map(|case| case.request(name)).collect()
}

pub(super) fn generate<F: Family>(engine: &mut FlowEngine<F>, request: &GenerateRequest) -> Generated {
    engine.generate(request, &Watch::new(|_| ()))
}

/// All sizes, steps, prompts and spellings of LoRAs, on one engine, whose LoRAs change from case to case.
pub(super) fn compare_images<F: Family>(name: &str) {
    let expected = expected(name);
    let cases = cases(name).all;
    let shifting = shifting(name);
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let mut stage = Stage::new(format!("{name}, 8 bit"));
    for (number, case) in cases.iter().enumerate().filter(|(_, case)| case.images == 0) {
        let generated = if case.dynamic {
            generate(&mut load::<F>(shifting.path(), SETTINGS).expect("loads"), &case.request(name))
        } else {
            generate(&mut engine, &case.request(name))
        };
        let generated = generated.expect("generates");
        let reference = expected.get(&format!("expected/{number}"));
        assert_eq!(generated.len(), case.seeds.len());
        for (place, ours) in generated.iter().enumerate() {
            let theirs = image(&reference.i(place).expect("one an image"));
            assert_eq!((ours.width_px, ours.height_px), theirs.dimensions());
            let case = format!("{number} ({}), image {place}", case.lora.as_deref().unwrap_or("no LoRA"));
            stage.note(&case, f64::from(largest_step(&ours.rgb, theirs.as_raw())));
        }
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
}

/// A transformer in one `file` is the checkpoint's own, which then need not be there.
pub(super) fn single_file_is_the_same<F: Family>(name: &str, file: &Path) {
    let settings = Settings { transformer: Some(file.to_owned()), ..SETTINGS };
    let directory = copied(name);
    fs::remove_file(directory.path().join("transformer/diffusion_pytorch_model.safetensors")).expect("removes");
    let mut single = load::<F>(directory.path(), settings).expect("loads");
    let mut own = load::<F>(&self::directory(name), SETTINGS).expect("loads");
    for case in cases(name).all.iter().filter(|case| !case.dynamic) {
        let request = case.request(name);
        assert_eq!(generate(&mut single, &request).expect("generates"), generate(&mut own, &request).expect("generates"));
    }
}

/// A transformer in a file of these bytes is refused with these words.
pub(super) fn refuses_single_file<F: Family>(name: &str, bytes: &[u8], says: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("writes");
    let settings = Settings { transformer: Some(file.path().to_owned()), ..SETTINGS };
    let refused = load::<F>(&directory(name), settings).err().expect(says).to_string();
    assert!(refused.contains(says) && refused.contains(&file.path().display().to_string()), "{refused}");
}

/// What is generated together is what each is alone.
pub(super) fn batch_is_as_alone<F: Family>(name: &str) {
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let one = GenerateRequest { seeds: vec![5, 6], ..plain(name) };
    let other = GenerateRequest { prompt: "a pink dress".into(), seeds: vec![7], ..one.clone() };
    let queued =
        [&one, &other].map(|request| QueuedRequest { request: Request::Generate(request.clone()), watch: Watch::new(|_| ()) });
    let both = engine.generate_together(&queued).expect("generates");
    let alone = [one, other].map(|request| generate(&mut engine, &request).expect("generates"));
    assert_eq!(both.into_iter().map(|images| images.expect("generates")).collect::<Vec<_>>(), alone);
    let image = generate(&mut engine, &GenerateRequest { seeds: vec![6], ..plain(name) }).expect("generates");
    assert_eq!(image[0], alone[0][1], "an image of several is what it is alone");
}

/// With steps that are CUDA graphs, on a GPU, images are what they are without, whatever LoRAs, prompts and sizes come one after the other.
pub(super) fn graphs_keep_the_images<F: Family>(name: &str) {
    let device = own_device();
    let [mut with, mut without] = [true, false].map(|graphs| {
        FlowEngine::<F>::load(&directory(name), Settings { graphs, ..SETTINGS }, device.clone()).expect("the fixture loads")
    });
    let mut steps = 0;
    for case in cases(name).all.iter().filter(|case| !case.dynamic) {
        let request = case.request(name);
        assert_eq!(generate(&mut with, &request).expect("generates"), generate(&mut without, &request).expect("generates"));
        steps += u64::from(request.steps) * request.seeds.len() as u64;
    }
    let counts = with.graph_counts();
    assert_eq!(without.graph_counts(), GraphCounts::default());
    if device.is_cuda() {
        assert!(counts.refused == 0 && counts.captured > 0 && counts.launched > counts.captured, "{counts:?}");
        assert_eq!(counts.captured + counts.launched, steps, "{counts:?}");
    }
}

pub(super) fn budget_keeps_the_image<F: Family>(name: &str) {
    let small = Settings { memory_budget: Some(1 << 10), ..SETTINGS };
    let mut small = load::<F>(&directory(name), small).expect("loads");
    let mut large = load::<F>(&directory(name), SETTINGS).expect("loads");
    assert!(!small.keeps_encoder() && large.keeps_encoder());
    let ours = generate(&mut small, &plain(name)).expect("generates");
    let theirs = generate(&mut large, &plain(name)).expect("generates");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(largest_step(&ours.rgb, &theirs.rgb) <= PIXEL, "bands sum in another order");
    }
    large.warm_up().expect("generates");
}

/// Each request is refused with this field and these words; then the engine goes on.
pub(super) fn refuses<F: Family>(name: &str, wrong: Vec<(&str, &str, GenerateRequest)>) {
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    for (name, says, request) in wrong {
        match generate(&mut engine, &request) {
            Err(EngineError::Request { field, problem }) => {
                assert!(field == name && problem.contains(says), "{name}: {field}: {problem}");
            }
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name}: must be refused, {says}"),
        }
    }
    assert_eq!(generate(&mut engine, &plain(name)).expect("goes on").len(), plain(name).seeds.len());
    let refused = load::<F>(&directory(name), Settings { dtype: DType::F16, ..SETTINGS }).err().expect("f16").to_string();
    assert!(refused.contains("engine.dtype") && refused.contains("f32"), "{refused}");
}

/// A change of the checkpoint's files, and what its refusal says.
pub(super) type Fault = (fn(&Path), &'static [&'static str]);

pub(super) fn refuses_checkpoints<F: Family>(name: &str, faults: &[Fault]) {
    for (change, says) in faults {
        let directory = copied(name);
        change(directory.path());
        let refused = load::<F>(directory.path(), SETTINGS).err().expect(says[0]).to_string();
        assert!(says.iter().all(|says| refused.contains(says)), "{says:?}: {refused}");
    }
}

/// A change of a file's tensors.
pub(super) type Change = fn(&mut HashMap<String, Tensor>);

pub(super) fn change(file: &Path, change: Change) {
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("reads");
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).expect("writes");
}

pub(super) fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("reads");
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).expect("writes");
}

/// LoRAs by their place among the fixtures, each refused with these words; then the next job is generated.
pub(super) fn refuses_loras<F: Family>(name: &str, loras: &[(&str, &str)]) {
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let before = generate(&mut engine, &plain(name)).expect("generates");
    for (file, says) in loras {
        let lora = LoraFile::new(directory(file), 1.0);
        let refused = generate(&mut engine, &GenerateRequest { loras: vec![lora], ..plain(name) }).expect_err(file);
        let EngineError::Lora { index: 0, problem } = &refused else { panic!("{file}: {refused}") };
        assert!(problem.contains(says), "{file}: {problem}");
    }
    assert_eq!(generate(&mut engine, &plain(name)).expect("generates"), before);
}

/// Two LoRA files of a fixture as one.
pub(super) fn refuses_both<F: Family>(name: &str, files: [&str; 2]) {
    let mut tensors = std::collections::HashMap::new();
    for file in files {
        let read = candle_core::safetensors::load(directory(name).join(file), &candle_core::Device::Cpu);
        tensors.extend(read.expect("reads"));
    }
    let both = tempfile::NamedTempFile::with_suffix(".safetensors").expect("a file");
    candle_core::safetensors::save(&tensors, both.path()).expect("writes");
    let loras = vec![LoraFile::new(both.path().to_owned(), 1.0)];
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let refused = generate(&mut engine, &GenerateRequest { loras, ..plain(name) }).expect_err("both").to_string();
    assert!(refused.contains("under two names"), "{refused}");
}

pub(super) fn cancelled<F: Family>(name: &str) {
    let mut engine = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let watch = Watch::new(|_| ());
    watch.cancel();
    let stopped = engine.generate(&plain(name), &watch);
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
    assert_eq!(watch.pace().steps, 0, "nothing is denoised for it");
}
