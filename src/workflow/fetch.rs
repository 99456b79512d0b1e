//! Step `fetch`: downloads the files a job refers to into the cache.

use std::sync::Arc;

use async_trait::async_trait;

use super::piece::Piece;
use super::{Step, StepName};
use crate::engine::LoraFile;
use crate::job::outcome::JobError;
use crate::job::task::Task;
use crate::store::Store;

pub struct Fetch {
    pub store: Arc<Store>,
}

#[async_trait]
impl Step for Fetch {
    fn name(&self) -> StepName {
        StepName::Fetch
    }

    async fn run(&mut self, piece: &mut Piece<'_>) -> Result<(), JobError> {
        // A try-on is refused before it gets here: no engine of this function can do one.
        let Task::Generate(generate) = &piece.job.task else { return Ok(()) };
        for (index, lora) in generate.loras.iter().enumerate() {
            let lease = self.store.fetch(&lora.url, &format!("lora[{index}].url")).await?;
            piece.loras.push(LoraFile { path: lease.path().to_owned(), scale: lora.scale });
            piece.leases.push(lease);
        }
        Ok(())
    }
}
