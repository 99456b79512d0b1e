//! Adapters as diffusers and PEFT save them, read with the alpha that these libraries read.

use std::path::PathBuf;

use atelier_engine::{AlphaSource, LoraFile};

use super::loras::look;
use super::{Reference, STAGE, Stage, engine, fixtures, values};

const FROM_HEADER: [&str; 6] = ["unet_alpha", "unet_patterns", "unet_rslora", "unet_dora", "unet_bias", "unet_saved_again"];
const FROM_CONFIG: [&str; 4] = ["peft_unet", "peft_text", "peft_lokr", "peft_loha"];

fn directory() -> PathBuf {
    fixtures().join("adapter_files")
}

fn from_header(name: &str) -> LoraFile {
    LoraFile::new(directory().join(format!("{name}.safetensors")), 1.0)
}

fn from_config(name: &str) -> LoraFile {
    let alpha = AlphaSource::Config(directory().join(name).join("adapter_config.json"));
    LoraFile { alpha, ..without_config(name) }
}

fn without_config(name: &str) -> LoraFile {
    LoraFile::new(directory().join(name).join("adapter_model.safetensors"), 1.0)
}

#[test]
fn parity_of_adapters_as_their_libraries_save_them() {
    let mut engine = engine("sd15");
    let latents = Reference::read("sd15");
    let reference = Reference::read("adapter_files/expected");
    let mut text = Stage::new("sd15, text states with adapters of libraries");
    let mut unet = Stage::new("sd15, unet with adapters of libraries");
    let headers = FROM_HEADER.iter().chain(&["text_old"]).map(|name| (*name, from_header(name)));
    for (name, lora) in headers.chain(FROM_CONFIG.iter().map(|name| (*name, from_config(name)))) {
        engine.use_loras(&[lora]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (states, noise) = look(&engine, &latents);
        text.compare(name, &states, reference.get(&format!("{name}/text")));
        unet.compare(name, &noise, reference.get(&format!("{name}/unet")));
    }
    text.finish(STAGE);
    unet.finish(STAGE);
}

/// PEFT's configuration for all modules is the same as an alpha in the job, where it has no patterns.
#[test]
fn alpha_of_the_job_is_that_of_the_configuration() {
    let mut engine = engine("sd15");
    let latents = Reference::read("sd15");
    let mut noise = |lora: LoraFile| {
        engine.use_loras(&[lora]).expect("loads");
        values(&look(&engine, &latents).1)
    };
    let of_config = noise(from_config("peft_text"));
    let given = AlphaSource::Given(7.0);
    assert_eq!(noise(LoraFile { alpha: given, ..without_config("peft_text") }), of_config);
    let another = AlphaSource::Given(2.0);
    assert_ne!(noise(LoraFile { alpha: another, ..without_config("peft_text") }), of_config, "one file, another alpha");
}

#[test]
fn alpha_that_is_nowhere_or_twice_is_refused() {
    let mut engine = engine("sd15");
    let mut refused = |lora: LoraFile, words: &str| {
        let error = engine.use_loras(&[lora]).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(without_config("peft_unet"), "does not say its alpha");
    refused(LoraFile { alpha: AlphaSource::Given(4.0), ..from_header("unet_alpha") }, "says its alpha itself");
    let config = AlphaSource::Config(directory().join("peft_unet/adapter_config.json"));
    refused(LoraFile { alpha: config.clone(), ..from_header("unet_alpha") }, "says its alpha itself");
    refused(LoraFile { alpha: config.clone(), ..without_config("peft_lokr") }, "its matrices are a Lokr's");
    refused(LoraFile { alpha: config, ..without_config("peft_text") }, "have the rank 2, the configuration says 3");
    let no_config = AlphaSource::Config(directory().join("text_old.safetensors"));
    refused(LoraFile { alpha: no_config, ..without_config("peft_unet") }, "its adapter_config.json");
}
