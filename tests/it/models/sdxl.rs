//! Models of Stable Diffusion XL from manifest to start: their files are brought, their family is checked, and their licence is known.

use std::fs;
use std::path::Path;

use atelier::config::{Config, Environment};

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::{Hub, REPOSITORY};

const FIXTURE: &str = "tests/fixtures/sdxl";

fn manifest(family: &str, more: &str) -> String {
    format!(
        "family: {family}\ncheckpoint: xl\nlicence: CreativeML OpenRAIL++-M\nsource: {{hub: {REPOSITORY}}}\n{more}defaults: {{model: xl, steps: \
         1, guidance_scale: 1.0, scheduler: euler, width: 64, height: 64, seed: 1, prefix: ''}}\n"
    )
}

/// A directory of models with this manifest of `xl`.
fn directory(manifest: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    fs::write(directory.path().join("models/xl.yaml"), manifest).expect("writes");
    fs::write(directory.path().join("config.yaml"), "{}\n").expect("writes");
    directory
}

async fn run(directory: &Path, hub: &Hub, arguments: &[&str]) -> (bool, String) {
    let mut command = atelier(directory, hub, arguments);
    command.env("ATELIER_MODEL", "xl");
    let ended = output(command).await;
    (ended.status.success(), printed(&ended))
}

#[tokio::test]
async fn both_text_encoders_are_brought_and_packed() {
    let hub = hub_of(&files_of(FIXTURE)).await;
    let directory = directory(&manifest("stable-diffusion-xl", ""));
    let (pulled, text) = run(directory.path(), &hub, &["pull"]).await;
    let there = |file: &str| directory.path().join("models/xl").join(file).is_file();
    assert!(pulled && there("text_encoder_2/model.safetensors") && there("tokenizer_2/merges.txt"), "{text}");
    assert!(!there("single_file.safetensors") && !there("expected.safetensors"), "what no one reads is not brought: {text}");
    let (packed, text) = run(directory.path(), &hub, &["pack", "--dtype", "f16"]).await;
    assert!(packed && text.contains("tensors as f16"), "{text}");
}

#[tokio::test]
async fn a_family_that_is_not_the_checkpoints_is_refused() {
    let hub = hub_of(&files_of(FIXTURE)).await;
    let directory = directory(&manifest("stable-diffusion-1", ""));
    let (pulled, text) = run(directory.path(), &hub, &["pull"]).await;
    assert!(pulled, "{text}");
    let (packed, text) = run(directory.path(), &hub, &["pack", "--dtype", "f32"]).await;
    assert!(!packed && text.contains("family is stable-diffusion-1") && text.contains("is of stable-diffusion-xl"), "{text}");
}

/// Settings from one repository, all weights in one file of another.
#[tokio::test]
async fn one_file_of_another_repository_is_brought_next_to_the_settings() {
    let hub = hub_of(&files_of(FIXTURE)).await;
    let weights = "weights: lightning/single_file.safetensors\ntimestep_spacing: trailing\n";
    let sources = format!("additional_sources: {{lightning: {{hub: {REPOSITORY}}}}}\n");
    let directory = directory(&manifest("stable-diffusion-xl", &format!("{weights}{sources}")));
    let (pulled, text) = run(directory.path(), &hub, &["pull"]).await;
    let there = |file: &str| directory.path().join("models").join(file).is_file();
    assert!(pulled && there("lightning/single_file.safetensors") && there("xl/unet/config.json"), "{text}");
    assert!(!there("xl/unet/diffusion_pytorch_model.safetensors") && !there("xl/text_encoder_2/model.safetensors"), "{text}");
    let (packed, text) = run(directory.path(), &hub, &["pack", "--dtype", "f16"]).await;
    assert!(packed && text.contains("tensors as f16"), "{text}");
}

#[test]
fn every_manifest_names_the_licence_of_its_weights() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let environment: Environment = std::iter::empty::<(String, String)>().collect();
    let yaml = format!("model: {{directory: {}}}", models.display());
    let config = Config::parse("config.yaml", &yaml, &environment).expect("a configuration");
    let names = config.model_names(&environment).expect("manifests");
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let manifest = config.manifest_of(&name, &environment).expect("a manifest");
        let licence = manifest.licence.unwrap_or_else(|| panic!("{} has no licence", name.as_str()));
        assert!(["Apache-2.0", "CreativeML OpenRAIL-M", "CreativeML OpenRAIL++-M"].contains(&licence.as_str()), "{licence}");
    }
}
