//! Every layout in which a checkpoint comes generates the same image.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, EngineError, Image, Watch};
use candle_core::{DType, Tensor};
use serde_json::json;

use super::checkpoints::copied;
use super::{fixtures, request};

use crate::device;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn generated(engine: Result<StableDiffusion, EngineError>) -> Vec<Image> {
    engine.expect("loads").generate(&request(vec![]), &Watch::new(|_| ())).expect("generates")
}

/// The checkpoint in `directory` with all weights out of one `file`.
pub(super) fn load_single_file(directory: &Path, file: &Path) -> Result<StableDiffusion, EngineError> {
    let settings = Settings::new(directory, DType::F32, device());
    StableDiffusion::load(&Settings { single_file: Some(file.to_owned()), ..settings })
}

fn plain() -> Vec<Image> {
    generated(StableDiffusion::load(&Settings::new(fixtures().join("sd15"), DType::F32, device())))
}

#[test]
fn one_file_under_the_old_names_is_the_same_checkpoint() {
    let directory = copied();
    for weights in [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"] {
        fs::remove_file(directory.path().join(weights)).expect("removes");
    }
    let file = fixtures().join("single_file.safetensors");
    assert_eq!(generated(load_single_file(directory.path(), &file)), plain());
}

/// transformers' name of a part of the text encoder, and `OpenCLIP`'s.
const OPEN_CLIP: [(&str, &str); 7] = [
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("encoder.layers", "transformer.resblocks"),
    ("final_layer_norm", "ln_final"),
];

/// The fixture's one file with its text encoder as Stable Diffusion 2 has it: `OpenCLIP`'s names, query, key and value in one, a layer more
/// than config.json says, and a projection.
fn with_open_clip(file: &Path) {
    const CLIP: &str = "cond_stage_model.transformer.text_model.";
    let tensors = candle_core::safetensors::load(fixtures().join("single_file.safetensors"), &device()).expect("loads");
    let mut renamed: HashMap<String, Tensor> = HashMap::new();
    for (name, tensor) in &tensors {
        let Some(part) = name.strip_prefix(CLIP) else {
            renamed.insert(name.clone(), tensor.clone());
            continue;
        };
        let name = match part {
            "embeddings.token_embedding.weight" => "token_embedding.weight".to_owned(),
            "embeddings.position_embedding.weight" => "positional_embedding".to_owned(),
            part if part.contains("k_proj") || part.contains("v_proj") || part.contains("position_ids") => continue,
            part if part.contains("self_attn.q_proj.") => part.replace("self_attn.q_proj.", "attn.in_proj_"),
            part => part.to_owned(),
        };
        let joined = if part.contains("q_proj") {
            let of = |letter: &str| tensors[&format!("{CLIP}{}", part.replace("q_proj", letter))].clone();
            Tensor::cat(&[tensor.clone(), of("k_proj"), of("v_proj")], 0).expect("joins")
        } else {
            tensor.clone()
        };
        let name = OPEN_CLIP.iter().fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
        renamed.insert(format!("cond_stage_model.model.{name}"), joined);
    }
    let more = Tensor::ones((24, 24), DType::F32, &device()).expect("a tensor");
    renamed.insert("cond_stage_model.model.transformer.resblocks.9.attn.out_proj.weight".into(), more.clone());
    renamed.insert("cond_stage_model.model.text_projection".into(), more);
    candle_core::safetensors::save(&renamed, file).expect("saves");
}

#[test]
fn one_file_of_stable_diffusion_2_is_the_same_checkpoint() {
    let directory = copied();
    let file = directory.path().join("sd2.safetensors");
    with_open_clip(&file);
    assert_eq!(generated(load_single_file(directory.path(), &file)), plain());
}

#[test]
fn one_file_without_a_part_says_which() {
    let tensors = candle_core::safetensors::load(fixtures().join("single_file.safetensors"), &device()).expect("loads");
    for (prefix, name) in [
        ("first_stage_model.", "holds no VAE (first_stage_model.…)"),
        ("model.diffusion_model.", "holds no UNet"),
        ("cond_stage_model.", "holds no text encoder"),
    ] {
        let directory = copied();
        let file = directory.path().join("one.safetensors");
        let rest: HashMap<&String, &Tensor> = tensors.iter().filter(|(name, _)| !name.starts_with(prefix)).collect();
        let rest: HashMap<String, Tensor> = rest.into_iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        candle_core::safetensors::save(&rest, &file).expect("saves");
        let loaded = load_single_file(directory.path(), &file);
        let problem = loaded.err().expect("a part is missing").to_string();
        assert!(problem.contains(name) && problem.contains("all of its parts"), "{problem}");
    }
}

#[test]
fn a_variant_is_read_where_there_is_no_plain_file() {
    let directory = copied();
    let fp16 = directory.path().join("unet/diffusion_pytorch_model.fp16.safetensors");
    fs::copy(directory.path().join(UNET), &fp16).expect("copies");
    fs::write(directory.path().join(UNET).with_file_name("diffusion_pytorch_model.bin"), b"PK").expect("writes");
    assert_eq!(
        generated(StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device()))),
        plain(),
        "next to the plain one"
    );
    fs::remove_file(directory.path().join(UNET)).expect("removes");
    assert_eq!(generated(StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device()))), plain(), "alone");
    fs::copy(&fp16, directory.path().join("unet/diffusion_pytorch_model.non_ema.safetensors")).expect("copies");
    let problem =
        StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).err().expect("which one?").to_string();
    assert!(problem.contains("has the variants fp16, non_ema and no plain file; keep one of them"), "{problem}");
}

/// Splits a weight file into two shards with their index next to them; `variant` stands in their names.
fn split(file: &Path, variant: &str) {
    let tensors = candle_core::safetensors::load(file, &device()).expect("loads");
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let name = |part: usize| format!("diffusion_pytorch_model{variant}-0000{part}-of-00002.safetensors");
    let mut map = BTreeMap::new();
    for part in [1, 2] {
        let shard = tensors.iter().enumerate().filter(|(place, _)| place % 2 == part - 1);
        let shard: HashMap<String, Tensor> = shard.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        map.extend(shard.keys().map(|key| (key.clone(), name(part))));
        candle_core::safetensors::save(&shard, file.with_file_name(name(part))).expect("saves");
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    let name = format!("diffusion_pytorch_model.safetensors.index{variant}.json");
    fs::write(file.with_file_name(name), index.to_string()).expect("writes");
    fs::remove_file(file).expect("removes");
}

#[test]
fn shards_are_read_by_their_index() {
    for variant in ["", ".fp16"] {
        let directory = copied();
        split(&directory.path().join(UNET), variant);
        if variant.is_empty() {
            // diffusers takes the shards, too.
            fs::write(directory.path().join(UNET), b"an older one").expect("writes");
        }
        assert_eq!(
            generated(StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device()))),
            plain(),
            "variant {variant:?}"
        );
        fs::remove_file(directory.path().join(format!("unet/diffusion_pytorch_model{variant}-00002-of-00002.safetensors")))
            .expect("removes");
        let problem = StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device()))
            .err()
            .expect("one is missing")
            .to_string();
        assert!(problem.contains("-00002-of-00002.safetensors"), "{problem}");
    }
}

#[test]
fn an_index_cannot_reach_out_of_its_directory() {
    let directory = copied();
    fs::remove_file(directory.path().join(UNET)).expect("removes");
    let index = json!({ "weight_map": { "conv_in.weight": "../../elsewhere.safetensors" } });
    let name = "unet/diffusion_pytorch_model.safetensors.index.json";
    fs::write(directory.path().join(name), index.to_string()).expect("writes");
    let problem =
        StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).err().expect("refused").to_string();
    assert!(problem.contains("names a file outside of its directory: ../../elsewhere.safetensors"), "{problem}");
}

#[test]
fn a_file_that_is_no_checkpoint_is_refused_in_words() {
    let directory = fixtures().join("sd15");
    let refused = |file: &Path| load_single_file(&directory, file).err().expect("refused").to_string();
    let problem = refused(&fixtures().join("loras/peft.safetensors"));
    assert!(problem.contains("holds no tensor of a Stable Diffusion 1 checkpoint in one file"), "{problem}");
    let pickle = tempfile::NamedTempFile::new().expect("a file");
    fs::write(pickle.path(), b"PK\x03\x04archive/data.pkl").expect("writes");
    assert!(refused(pickle.path()).contains("is a pickle, which can run code"), "{}", refused(pickle.path()));
}
