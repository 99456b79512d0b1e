//! Step `fetch`: downloads the files a job refers to into the cache.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::context::{JobContext, StartFiles, TryOnFiles};
use super::{Step, StepName};
use crate::job::outcome::JobError;
use crate::job::task::Task;
use crate::job::url::AssetUrl;
use crate::store::Store;
use atelier_engine::{EmbeddingFile, LoraFile};

pub struct Fetch {
    pub store: Arc<Store>,
}

#[async_trait]
impl Step for Fetch {
    fn name(&self) -> StepName {
        StepName::Fetch
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let job = context.job;
        match &job.task {
            Task::Generate(generate) => {
                for (index, lora) in generate.loras.iter().enumerate() {
                    let path = self.fetch(context, &lora.url, &format!("lora[{index}].url")).await?;
                    context.loras.push(LoraFile { path, scale: lora.scale.get() });
                }
                for (index, embedding) in generate.embeddings.iter().enumerate() {
                    let path = self.fetch(context, &embedding.url, &format!("embeddings[{index}].url")).await?;
                    context.embeddings.push(EmbeddingFile { path, token: embedding.token.as_str().to_owned() });
                }
                if let Some(start) = &generate.start {
                    let image = self.fetch(context, &start.url, "init_image.url").await?;
                    let mask = match &start.mask {
                        Some(mask) => Some(self.fetch(context, mask, "mask_image.url").await?),
                        None => None,
                    };
                    context.start_files = Some(StartFiles { image, mask });
                }
            }
            Task::TryOn(tryon) => {
                let person = self.fetch(context, &tryon.person, "person").await?;
                let mut garments = Vec::with_capacity(tryon.garments.get().len());
                for (index, garment) in tryon.garments.get().iter().enumerate() {
                    garments.push(self.fetch(context, garment, &format!("garments[{index}]")).await?);
                }
                let mask = match &tryon.mask {
                    Some(mask) => Some(self.fetch(context, mask, "mask").await?),
                    None => None,
                };
                context.tryon_files = Some(TryOnFiles { person, garments, mask });
            }
        }
        Ok(())
    }
}

impl Fetch {
    /// The file stays where it is as long as the job context lives.
    async fn fetch(&self, context: &mut JobContext<'_>, asset: &AssetUrl, field: &str) -> Result<PathBuf, JobError> {
        let lease = self.store.fetch(asset, field).await?;
        let path = lease.path().to_owned();
        context.leases.push(lease);
        Ok(path)
    }
}
