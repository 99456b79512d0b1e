//! The files that a job names as its inputs, each by its field.

use super::Job;
use super::task::{Lora, LoraAlphaSource, Task};
use super::url::AssetUrl;

impl Job {
    /// All of them, in the order in which they are fetched; the field as the caller wrote it.
    #[must_use]
    pub fn inputs(&self) -> Vec<(String, &AssetUrl)> {
        let mut inputs = Vec::new();
        match &self.task {
            Task::Generate(generate) => {
                inputs.extend(of_loras(&generate.loras));
                for (index, embedding) in generate.embeddings.iter().enumerate() {
                    inputs.push((format!("embeddings[{index}].url"), &embedding.url));
                }
                if let Some(start) = &generate.start {
                    inputs.push(("init_image.url".to_owned(), &start.url));
                    inputs.extend(start.mask.as_ref().map(|mask| ("mask_image.url".to_owned(), mask)));
                }
                for (index, control) in generate.controls.iter().enumerate() {
                    inputs.push((format!("controlnets[{index}].image.url"), &control.image));
                }
                for (index, prompt) in generate.image_prompts.iter().enumerate() {
                    let images = prompt.images.get().iter().enumerate();
                    inputs.extend(images.map(|(place, image)| (format!("ip_adapters[{index}].images[{place}]"), image)));
                }
            }
            Task::TryOn(tryon) => {
                inputs.push(("person".to_owned(), &tryon.person));
                let garments = tryon.garments.get().iter().enumerate();
                inputs.extend(garments.map(|(index, garment)| (format!("garments[{index}]"), garment)));
                inputs.extend(tryon.mask.as_ref().map(|mask| ("mask".to_owned(), mask)));
            }
            Task::Edit(edit) => {
                inputs.extend(of_loras(&edit.loras));
                let images = edit.images.get().iter().enumerate();
                inputs.extend(images.map(|(index, image)| (format!("images[{index}]"), image)));
            }
        }
        inputs
    }
}

/// Each with the file that says its alpha, where the job names one.
fn of_loras(loras: &[Lora]) -> impl Iterator<Item = (String, &AssetUrl)> {
    loras.iter().enumerate().flat_map(|(index, lora)| {
        let config = match &lora.alpha {
            LoraAlphaSource::Config(url) => Some((format!("lora[{index}].config_url"), url)),
            LoraAlphaSource::File | LoraAlphaSource::Given(_) => None,
        };
        [(format!("lora[{index}].url"), &lora.url)].into_iter().chain(config)
    })
}
