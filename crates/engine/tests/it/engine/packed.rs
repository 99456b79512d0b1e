//! A packed checkpoint is its source: the same images out of one file, wherever the weights came from.

use std::fs;
use std::path::Path;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::pack::ALIGNMENT;
use atelier_engine::sd::settings::Settings;
use atelier_engine::tensor_file::{self, PACKED};
use atelier_engine::{Engine, EngineError, Image, Watch};
use candle_core::DType;
use tempfile::TempDir;

use super::checkpoints::{copied, edit};
use super::layouts::load_single_file;
use super::{fixtures, request};

use crate::device;

fn loaded(directory: &Path, dtype: DType) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(directory, dtype, device())).expect("loads")
}

fn generated(mut engine: StableDiffusion) -> Vec<Image> {
    engine.generate(&request(vec![]), &Watch::new(|_| ())).expect("generates")
}

/// The fixture, packed as `dtype` into a directory of its own.
fn packed(dtype: DType) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    loaded(&fixtures().join("sd15"), dtype).pack(directory.path()).expect("packs");
    directory
}

fn refused(directory: &Path) -> String {
    StableDiffusion::load(&Settings::new(directory, DType::F32, device())).err().expect("refused").to_string()
}

#[test]
fn a_packed_directory_generates_the_images_of_its_source() {
    for dtype in [DType::F32, DType::F16] {
        let source = generated(loaded(&fixtures().join("sd15"), dtype));
        assert_eq!(generated(loaded(packed(dtype).path(), dtype)), source, "{dtype:?}");
    }
    let whole = packed(DType::F32);
    let half = packed(DType::F16);
    assert_eq!(
        generated(loaded(whole.path(), DType::F16)),
        generated(loaded(half.path(), DType::F16)),
        "rounded once, now or then"
    );
    let size = |directory: &TempDir| fs::metadata(directory.path().join(PACKED)).expect("there").len();
    assert!(size(&half) < size(&whole) * 6 / 10, "half as many bytes for each number");
    // This format is for GPUs, and a CPU can write and read it all the same.
    loaded(packed(DType::BF16).path(), DType::F32);
}

#[test]
fn a_pack_of_an_earlier_build_is_its_source() {
    let earlier = fixtures().join("../stored/pack");
    let source = loaded(&fixtures().join("sd15"), DType::F16);
    assert_eq!(generated(loaded(&earlier, DType::F16)), generated(source));
}

#[test]
fn a_checkpoint_in_one_file_is_packed_like_any_other() {
    let source = copied();
    let to = tempfile::tempdir().expect("a directory");
    for weights in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
        fs::remove_file(source.path().join(format!("{weights}.safetensors"))).expect("removes");
    }
    let file = fixtures().join("single_file.safetensors");
    let single = load_single_file(source.path(), &file).expect("loads");
    single.pack(to.path()).expect("packs");
    assert_eq!(generated(loaded(to.path(), DType::F32)), generated(loaded(&fixtures().join("sd15"), DType::F32)));
}

/// Values begin at a page, parts of the model follow each other, and other readers of the format know it.
#[test]
fn the_packed_file_is_laid_out_for_reading() {
    let directory = packed(DType::F16);
    let file = directory.path().join(PACKED);
    tensor_file::check(&file).expect("whole");
    let bytes = fs::read(&file).expect("there");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    assert_eq!((8 + header) % ALIGNMENT, 0);
    let names = std::str::from_utf8(&bytes[8..8 + header]).expect("text").trim_end();
    let first = |component: &str| names.find(&format!("\"{component}.")).expect("has tensors");
    let last = |component: &str| names.rfind(&format!("\"{component}.")).expect("has tensors");
    assert!(last("text_encoder") < first("unet") && last("unet") < first("vae"), "{names}");
    let tensors = candle_core::safetensors::load(&file, &device()).expect("loads");
    assert!(tensors.contains_key("unet.conv_in.weight"));
    assert!(tensors.values().all(|tensor| tensor.dtype() == DType::F16));
    for entry in fs::read_dir(directory.path().join("unet")).expect("a directory") {
        assert_eq!(entry.expect("an entry").file_name(), "config.json", "weights are in the one file alone");
    }
}

#[test]
fn what_cannot_be_packed_or_is_no_pack_is_refused_in_words() {
    let source = copied();
    let engine = loaded(source.path(), DType::F32);
    let problem = |to: &Path| match engine.pack(to) {
        Err(EngineError::Checkpoint { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert!(problem(source.path()).contains("is the checkpoint itself, which stays as it is"), "{}", problem(source.path()));
    assert!(!source.path().join(PACKED).exists());
    let directory = packed(DType::F32);
    assert!(problem(directory.path()).contains("has atelier.safetensors already"), "{}", problem(directory.path()));
    let in_the_way = directory.path().join(PACKED);
    assert!(problem(&in_the_way).contains("cannot be written"), "{}", problem(&in_the_way));

    let whole = fs::read(&in_the_way).expect("there");
    fs::write(&in_the_way, &whole[..whole.len() - 1]).expect("writes");
    assert!(refused(directory.path()).contains("is not a whole safetensors file"), "{}", refused(directory.path()));
    fs::write(&in_the_way, &whole).expect("writes");
    edit(&directory.path().join("unet/config.json"), "\"layers_per_block\": 1", "\"layers_per_block\": 2");
    assert!(refused(directory.path()).contains("unet.down_blocks.0.resnets.1.norm1.weight [16] is missing"));
}
