//! A job on its way: a line for each event, its previews and its images as files.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Api;
use super::events::JobEvent;
use crate::job::JobId;
use crate::start::command::line;

/// Prints what happens to a job until it has ended. `out`: where its previews go while it runs, and then its images; without it there is
/// nowhere to look at them, and the host makes none.
///
/// # Errors
/// When the host cannot be asked, a file cannot be written, or the job has not been completed.
pub(super) async fn follow(api: &Api, id: &JobId, out: Option<&Path>) -> anyhow::Result<()> {
    let preview = match out {
        Some(directory) => {
            fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
            Some(directory.join(format!("{id}-preview.jpg")))
        }
        None => None,
    };
    let ended = api.follow(id, preview.is_some(), |event| match (event.name.as_str(), &preview) {
        ("preview", Some(file)) => keep_preview(id, &event.document, file),
        _ => report_event(id, event),
    });
    let ended = ended.await?;
    if let Some(directory) = out {
        download(api, id, &ended, directory).await?;
    }
    ensure!(ended["state"] == "complete", "{id} has not been completed");
    // The images are there: what they looked like before is of no use. It may never have been.
    if let Some(file) = preview {
        let _ = fs::remove_file(file);
    }
    Ok(())
}

/// A line for each event.
fn report_event(id: &JobId, event: &JobEvent) -> anyhow::Result<()> {
    let JobEvent { name, document, .. } = event;
    Ok(line(&match name.as_str() {
        "step" => format!("{id} step {} of {}", document["step"], document["steps"]),
        "started" => format!("{id} started, attempt {}", document["attempt"]),
        "accepted" if document["position"].is_u64() => format!("{id} accepted, {} before it", document["position"]),
        _ => match document["error"]["message"].as_str() {
            Some(message) => format!("{id} {name}: {message}"),
            None => format!("{id} {name}"),
        },
    })?)
}

/// Writes a preview over the one before; who looks at the file sees the one or the other.
fn keep_preview(id: &JobId, preview: &Value, file: &Path) -> anyhow::Result<()> {
    let image =
        STANDARD.decode(preview["image"].as_str().unwrap_or_default()).context("the host sent a preview that is no base64")?;
    let next = file.with_extension("jpg.part");
    let written = fs::write(&next, image).and_then(|()| fs::rename(&next, file));
    written.with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(line(&format!("{id} preview of step {} of {}: {}", preview["step"], preview["steps"], file.display()))?)
}

/// Writes the images of a complete job.
async fn download(api: &Api, id: &JobId, job: &Value, directory: &Path) -> anyhow::Result<()> {
    let images = job["result"]["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, image) in images.iter().enumerate() {
        let url = image["url"].as_str().context("the result has an image without an address")?;
        let response = api.client.get(url).send().await.with_context(|| format!("image {index} of {id} cannot be fetched"))?;
        if !response.status().is_success() {
            bail!("image {index} of {id} cannot be fetched: the store answered {}", response.status());
        }
        let kind = image["content_type"].as_str().and_then(|kind| kind.strip_prefix("image/")).unwrap_or("png");
        let file = directory.join(format!("{id}-{index}.{kind}"));
        let bytes = response.bytes().await.with_context(|| format!("image {index} of {id} broke off"))?;
        fs::write(&file, bytes).with_context(|| format!("{} cannot be written", file.display()))?;
        line(&format!("{id} {}", file.display()))?;
    }
    Ok(())
}
