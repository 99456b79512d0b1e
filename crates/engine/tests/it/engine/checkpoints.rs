//! Every checkpoint that must be refused, and what its error must say.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, EngineError, Watch};
use candle_core::DType;

use super::{copy_directory, fixtures, request};

use crate::device;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of the fixture that may be broken.
pub(crate) fn copied() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    copy_directory(&fixtures().join("sd15"), directory.path());
    directory
}

pub(crate) fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("reads");
    assert!(text.contains(from), "{from} is not in {}", file.display());
    fs::write(file, text.replace(from, to)).expect("writes");
}

/// Breaks a copy, loads it, and returns the error's file and message.
fn refused(breaking: impl FnOnce(&Path)) -> (PathBuf, String) {
    let directory = copied();
    breaking(directory.path());
    match StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).err() {
        Some(EngineError::Checkpoint { path, problem }) => {
            (path.strip_prefix(directory.path()).unwrap_or(&path).to_owned(), problem)
        }
        other => panic!("{other:?}"),
    }
}

fn assert_refused(breaking: impl FnOnce(&Path), file: &str, words: &[&str]) {
    let (path, problem) = refused(breaking);
    assert_eq!(path, Path::new(file), "{problem}");
    for word in words {
        assert!(problem.contains(word), "{word:?} is not in {problem:?}");
    }
}

#[test]
fn checkpoint_without_its_index() {
    assert_refused(
        |directory| fs::remove_file(directory.join("model_index.json")).expect("removes"),
        "model_index.json",
        &["No such file"],
    );
}

#[test]
fn checkpoint_of_another_pipeline() {
    assert_refused(
        |directory| {
            edit(&directory.join("model_index.json"), "StableDiffusionPipeline", "StableDiffusion3Pipeline");
        },
        "model_index.json",
        &["_class_name", "StableDiffusion3", "supported: \"StableDiffusionPipeline\""],
    );
}

/// The same weights under the names of other pipelines, and what those add to the index.
#[test]
fn checkpoint_of_a_pipeline_around_the_same_weights() {
    for pipeline in ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionControlNetPipeline"] {
        let directory = copied();
        let index = directory.path().join("model_index.json");
        let more = format!("\"{pipeline}\",\n \"controlnet\": [\"diffusers\", \"ControlNetModel\"]");
        edit(&index, "\"StableDiffusionPipeline\"", &more);
        fs::create_dir(directory.path().join("safety_checker")).expect("a directory");
        fs::write(directory.path().join("safety_checker/model.safetensors"), b"not read").expect("writes");
        assert!(StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).is_ok(), "{pipeline}");
    }
}

/// 1 is 1.0, and a list for all blocks is as good as the value for each.
#[test]
fn checkpoint_with_settings_spelled_otherwise() {
    let directory = copied();
    let config = directory.path().join("unet/config.json");
    for (key, from, to) in [
        ("mid_block_scale_factor", "1", "1.0"),
        ("resnet_out_scale_factor", "1.0", "1"),
        ("only_cross_attention", "false", "[false, false, false]"),
        ("layers_per_block", "1", "[1, 1, 1]"),
        ("sample_size", "8", "[8, 8]"),
    ] {
        edit(&config, &format!("\"{key}\": {from},"), &format!("\"{key}\": {to},"));
    }
    assert!(StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).is_ok());
    edit(&config, "[false, false, false]", "[false, true, false]");
    let refused =
        StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).err().expect("refused").to_string();
    assert!(refused.contains("only_cross_attention is [false,true,false]; supported: false"), "{refused}");
}

#[test]
fn checkpoint_whose_unet_looks_at_other_things() {
    assert_refused(
        |directory| edit(&directory.join("unet/config.json"), "\"in_channels\": 4", "\"in_channels\": 7"),
        "unet",
        &["in_channels", "inpainting", "instruct-pix2pix", "not supported"],
    );
}

#[test]
fn checkpoint_with_a_setting_that_is_not_supported() {
    assert_refused(
        |directory| edit(&directory.join("unet/config.json"), "\"silu\"", "\"gelu\""),
        "unet/config.json",
        &["act_fn is \"gelu\"", "supported: \"silu\""],
    );
    assert_refused(
        |directory| edit(&directory.join("unet/config.json"), "\"DownBlock2D\"", "\"AttnDownBlock2D\""),
        "unet/config.json",
        &["AttnDownBlock2D", "CrossAttnDownBlock2D"],
    );
    assert_refused(
        |directory| edit(&directory.join("scheduler/scheduler_config.json"), "{", "{,"),
        "scheduler/scheduler_config.json",
        &["line 1"],
    );
}

#[test]
fn checkpoint_of_pickles() {
    assert_refused(
        |directory| {
            fs::rename(directory.join(UNET), directory.join("unet/diffusion_pytorch_model.bin")).expect("renames");
        },
        "unet",
        &["diffusion_pytorch_model.safetensors", "safe_serialization"],
    );
}

#[test]
fn checkpoint_with_half_a_file() {
    assert_refused(
        |directory| {
            let bytes = fs::read(directory.join(UNET)).expect("reads");
            fs::write(directory.join(UNET), &bytes[..bytes.len() / 2]).expect("writes");
        },
        UNET,
        &["not a whole safetensors file"],
    );
}

#[test]
fn checkpoint_whose_tensors_do_not_fit_its_sizes() {
    assert_refused(
        |directory| edit(&directory.join("unet/config.json"), "\"layers_per_block\": 1", "\"layers_per_block\": 2"),
        "",
        &["unet.down_blocks.0.resnets.1.norm1.weight [16] is missing", "more"],
    );
    assert_refused(
        |directory| {
            edit(&directory.join("text_encoder/config.json"), "\"intermediate_size\": 48", "\"intermediate_size\": 40");
        },
        "",
        &["mlp.fc1.weight has the shape [48, 24], config.json says [40, 24]"],
    );
}

#[test]
fn checkpoint_with_a_schedule_that_one_scheduler_cannot_follow_works_with_the_others() {
    let directory = copied();
    let file = directory.path().join("scheduler/scheduler_config.json");
    edit(&file, "\"steps_offset\": 1,", "\"steps_offset\": 1, \"algorithm_type\": \"deis\", \"predict_x0\": false,");
    let mut engine = StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).expect("loads");
    let mut request = request(vec![]);
    engine.generate(&request, &Watch::new(|_| ())).expect("dpmsolver++ does not read it");
    request.scheduler = Scheduler::plain(Sampler::UniPc);
    match engine.generate(&request, &Watch::new(|_| ())).expect_err("must be refused") {
        EngineError::Request { field: "scheduler", problem } => {
            assert!(problem.contains("unipc") && problem.contains("predict_x0 false; supported: true"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}
