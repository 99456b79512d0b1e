//! Jobs that run one by one in processes of their own, `atelier invoke`, over a directory of models that a test has put together.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use image::RgbImage;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

pub(super) struct Invoker {
    pub(super) bucket: Bucket,
    backend: Backend,
    world: World,
    /// With the models in it.
    home: TempDir,
    model: &'static str,
    /// Of where results are stored.
    prefix: &'static str,
}

impl Invoker {
    /// `fixtures`: directories of the repository, each with its name among the models. `manifest`: that of `model`.
    pub(super) async fn start(
        (model, manifest): (&'static str, &str),
        prefix: &'static str,
        fixtures: &[(&str, &str)],
    ) -> Self {
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
        let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
        let home = tempfile::tempdir().unwrap();
        for (name, directory) in fixtures {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            std::os::unix::fs::symlink(from, home.path().join(name)).unwrap();
        }
        std::fs::write(home.path().join(format!("{model}.yaml")), manifest).unwrap();
        Self { bucket, backend, world, home, model, prefix }
    }

    /// Copies one of the fixtures' images into the bucket; returns its address.
    pub(super) fn image(&self, file: &str) -> String {
        std::fs::copy(format!("{}/tests/fixtures/images/{file}", env!("CARGO_MANIFEST_DIR")), self.bucket.path(file)).unwrap();
        format!("s3://{}/{file}", atelier::demo::local::BUCKET)
    }

    pub(super) async fn invoke(&self, settings: &[(&str, &str)], job: &Value) -> Output {
        let home = self.home.path();
        let models = home.display().to_string();
        let cache = home.join("cache").display().to_string();
        let own = [
            ("ATELIER_MODEL", self.model),
            ("ATELIER__MODEL__DIRECTORY", &models),
            ("ATELIER__STORE__CACHE__DIRECTORY", &cache),
        ];
        let event = home.join("event.json");
        std::fs::write(&event, job.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
        command.args(["invoke", "-"]).current_dir(home).envs(self.world.environment(&[&own[..], settings].concat()));
        command.stdin(std::fs::File::open(event).unwrap()).stderr(Stdio::piped());
        spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Runs a job to its end; returns its record and its first image.
    pub(super) async fn complete(&mut self, job: &Value) -> (Value, RgbImage) {
        let id = job["job_id"].as_str().unwrap();
        let ended = self.invoke(&[], job).await;
        let reply: Value = serde_json::from_slice(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
        assert_eq!(reply["status"], "complete", "{id}: {reply}");
        assert!(self.backend.terminal().await.path.ends_with("/complete"));
        let record = std::fs::read(self.bucket.path(&format!("{}{id}/result.json", self.prefix))).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let image = image::open(self.bucket.path(record["images"][0]["key"].as_str().unwrap())).unwrap().into_rgb8();
        (record, image)
    }
}
