//! Step `fetch`: downloads the files a job refers to into the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::task;

use super::context::{EditFiles, Fetched, GenerateInputs, InputImage, Inputs, JobContext, StartFiles, TryOnFiles};
use super::{Step, StepName};
use crate::content_credentials::manifest::Role;
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::tryon::TryOn;
use crate::job::task::{Generate, Lora, LoraAlphaSource, Task};
use crate::job::url::AssetUrl;
use crate::store::Store;
use crate::store::fetch::InputKind;
use atelier_engine::lora::alphas::needs_config;
use atelier_engine::{AlphaSource, EmbeddingFile, LoraFile};

/// What PEFT's `save_pretrained` writes next to an adapter: its alpha among other things.
const ADAPTER_CONFIG: &str = "adapter_config.json";

pub struct Fetch {
    pub store: Arc<Store>,
}

#[async_trait]
impl Step for Fetch {
    fn name(&self) -> StepName {
        StepName::Fetch
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.store.check_inputs(job)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let job = context.job;
        context.inputs = Inputs::Fetched(match &job.task {
            Task::Generate(generate) => Fetched::Generate(generate, self.generate(context, generate).await?),
            Task::TryOn(tryon) => Fetched::TryOn(tryon, self.tryon(context, tryon).await?),
            Task::Edit(edit) => {
                let loras = self.loras(context, &edit.loras).await?;
                let mut images = Vec::with_capacity(edit.images.get().len());
                for (index, image) in edit.images.get().iter().enumerate() {
                    let role = if index == 0 { Role::Parent } else { Role::Component };
                    images.push(self.fetch_image(context, image, &format!("images[{index}]"), role).await?);
                }
                Fetched::Edit(edit, EditFiles { loras, images })
            }
        });
        Ok(())
    }
}

impl Fetch {
    async fn generate(
        &self,
        context: &mut JobContext<'_>,
        generate: &Generate,
    ) -> Result<GenerateInputs<StartFiles, PathBuf, PathBuf>, JobError> {
        let loras = self.loras(context, &generate.loras).await?;
        let mut embeddings = Vec::with_capacity(generate.embeddings.len());
        for (index, embedding) in generate.embeddings.iter().enumerate() {
            let path = self.fetch(context, (&embedding.url, InputKind::Weights), &format!("embeddings[{index}].url")).await?;
            embeddings.push(EmbeddingFile { path, token: embedding.token.as_str().to_owned() });
        }
        let start = match &generate.start {
            Some(start) => {
                let image = self.fetch_image(context, &start.url, "init_image.url", Role::Parent).await?;
                let mask = match &start.mask {
                    Some(mask) => Some(self.fetch_image(context, mask, "mask_image.url", Role::Input).await?),
                    None => None,
                };
                Some(StartFiles { image, mask })
            }
            None => None,
        };
        let mut controls = Vec::with_capacity(generate.controls.len());
        for (index, control) in generate.controls.iter().enumerate() {
            let field = format!("controlnets[{index}].image.url");
            controls.push(self.fetch_image(context, &control.image, &field, Role::Input).await?);
        }
        let mut image_prompts = Vec::with_capacity(generate.image_prompts.len());
        for (index, prompt) in generate.image_prompts.iter().enumerate() {
            let mut images = Vec::with_capacity(prompt.images.get().len());
            for (place, image) in prompt.images.get().iter().enumerate() {
                let field = format!("ip_adapters[{index}].images[{place}]");
                images.push(self.fetch_image(context, image, &field, Role::Input).await?);
            }
            image_prompts.push(images);
        }
        Ok(GenerateInputs { loras, embeddings, start, controls, image_prompts })
    }

    async fn loras(&self, context: &mut JobContext<'_>, loras: &[Lora]) -> Result<Vec<LoraFile>, JobError> {
        let mut files = Vec::with_capacity(loras.len());
        for (index, lora) in loras.iter().enumerate() {
            let path = self.fetch(context, (&lora.url, InputKind::Weights), &format!("lora[{index}].url")).await?;
            let alpha = self.alpha(context, lora, &path, index).await?;
            files.push(LoraFile { path, scale: lora.scale.get(), alpha });
        }
        Ok(files)
    }

    async fn tryon(&self, context: &mut JobContext<'_>, tryon: &TryOn) -> Result<TryOnFiles, JobError> {
        let person = self.fetch_image(context, &tryon.person, "person", Role::Parent).await?;
        let mut garments = Vec::with_capacity(tryon.garments.get().len());
        for (index, garment) in tryon.garments.get().iter().enumerate() {
            garments.push(self.fetch_image(context, garment, &format!("garments[{index}]"), Role::Component).await?);
        }
        let mask = match &tryon.mask {
            Some(mask) => Some(self.fetch_image(context, mask, "mask", Role::Input).await?),
            None => None,
        };
        Ok(TryOnFiles { person, garments, mask })
    }

    /// Where the alpha of the LoRA in `path` is.
    async fn alpha(
        &self,
        context: &mut JobContext<'_>,
        lora: &Lora,
        path: &Path,
        index: usize,
    ) -> Result<AlphaSource, JobError> {
        match &lora.alpha {
            LoraAlphaSource::Given(alpha) => return Ok(AlphaSource::Given(alpha.get())),
            LoraAlphaSource::Config(url) => {
                return self
                    .fetch(context, (url, InputKind::Weights), &format!("lora[{index}].config_url"))
                    .await
                    .map(AlphaSource::Config);
            }
            LoraAlphaSource::File => {}
        }
        let lora_path = path.to_owned();
        let needed = task::spawn_blocking(move || needs_config(&lora_path)).await.unwrap_or_default();
        let Some(beside) = lora.url.sibling(ADAPTER_CONFIG).filter(|_| needed) else { return Ok(AlphaSource::File) };
        match self.fetch(context, (&beside, InputKind::Weights), &format!("lora[{index}].url")).await {
            Ok(config) => Ok(AlphaSource::Config(config)),
            // There is none, or it may not be read: the engine says what is missing, and how else it can be given.
            Err(JobError::Input { .. }) => Ok(AlphaSource::File),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::fetch`], of an image; `role`: what it is to the one that is generated.
    async fn fetch_image(
        &self,
        context: &mut JobContext<'_>,
        asset: &AssetUrl,
        field: &str,
        role: Role,
    ) -> Result<PathBuf, JobError> {
        let path = self.fetch(context, (asset, InputKind::Image), field).await?;
        context.input_images.push(InputImage { role, field: field.to_owned(), path: path.clone() });
        Ok(path)
    }

    /// The file stays where it is as long as the job context lives.
    async fn fetch(
        &self,
        context: &mut JobContext<'_>,
        (asset, kind): (&AssetUrl, InputKind),
        field: &str,
    ) -> Result<PathBuf, JobError> {
        let lease = self.store.fetch(asset, kind, field, context.job).await?;
        let path = lease.path().to_owned();
        context.leases.push(lease);
        Ok(path)
    }
}
