//! The one line that the log has of a job that is done.

use std::collections::BTreeMap;

use crate::job::Job;
use crate::job::outcome::Record;
use crate::job::task::Task;

pub(super) fn log_done(job: &Job, record: &Record, replayed: bool, timings_ms: &BTreeMap<String, u64>) {
    let (loras, seed, steps, size) = match &job.task {
        Task::Generate(generate) => (&generate.loras[..], generate.seed, generate.steps, generate.size.to_string()),
        Task::TryOn(tryon) => (&[][..], tryon.seed, tryon.steps, format!("{}p", tryon.resolution.short_side_px())),
        Task::Edit(edit) => {
            let image = record.images.first();
            let size = image.map(|image| format!("{}x{}", image.width_px, image.height_px));
            (&edit.loras[..], edit.seed, edit.steps, size.unwrap_or_default())
        }
    };
    let loras: Vec<String> = loras.iter().map(|lora| lora.url.to_string()).collect();
    tracing::info!(
        job_id = %job.id,
        model = record.model,
        lora = loras.join(" "),
        seed = seed.get(),
        steps = steps.get(),
        size,
        images = record.images.len(),
        replayed,
        timings_ms = %serde_json::json!(timings_ms),
        "job done"
    );
}
