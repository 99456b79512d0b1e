//! A model with GGUF files: they are brought in place of the weights that they replace.

use std::fs;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::REPOSITORY;

#[tokio::test]
async fn gguf_files_are_brought_in_place_of_transformer_and_encoder() {
    let packed = files_of("tests/fixtures/gguf/flux").into_iter().filter(|(name, _)| name.contains(".gguf"));
    let hub = hub_of(&files_of("tests/fixtures/flux").into_iter().chain(packed).collect::<Vec<_>>()).await;
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    let manifest = format!(
        "family: flux\ncheckpoint: flux\nweights: packed/transformer.gguf\ntext_encoder: packed/text_encoder.gguf\nsource: {{hub: \
         {REPOSITORY}}}\nadditional_sources: {{packed: {{hub: {REPOSITORY}}}}}\ndefaults: {{model: flux, steps: 1, guidance_scale: 1.0, \
         scheduler: euler, width: 64, height: 64, seed: 1, prefix: ''}}\n"
    );
    let file = directory.path().join("models/flux.yaml");
    fs::write(&file, &manifest).expect("writes");
    fs::write(directory.path().join("config.yaml"), "{}\n").expect("writes");
    let pull = async || {
        let mut command = atelier(directory.path(), &hub, &["pull"]);
        command.env("ATELIER_MODEL", "flux");
        let ended = output(command).await;
        (ended.status.success(), printed(&ended))
    };
    let (pulled, text) = pull().await;
    let there = |file: &str| directory.path().join("models").join(file).is_file();
    assert!(pulled && there("packed/transformer.gguf") && there("packed/text_encoder.gguf"), "{text}");
    assert!(there("flux/text_encoder/model.safetensors") && there("flux/text_encoder_2/config.json"), "{text}");
    assert!(!there("flux/transformer/diffusion_pytorch_model.safetensors"), "{text}");
    assert!(!there("flux/text_encoder_2/model.safetensors"), "{text}");

    fs::write(&file, manifest.replace("packed/text_encoder", "text_encoder")).expect("writes");
    let (pulled, text) = pull().await;
    assert!(!pulled && text.contains("text_encoder: must lie in one of additional_sources"), "{text}");
}
