//! A job on its way: a line for each event, its previews and its images as files.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::time::timeout;

use super::Api;
use super::events::{JobEvent, SILENCE};
use crate::job::JobId;
use crate::shown;
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
        download(api, id, &ended, directory, SILENCE).await?;
    }
    ensure!(ended["state"] == "complete", "{id} has not been completed");
    // The images are there: what they looked like before is of no use. It may never have been.
    if let Some(file) = preview {
        let _ = fs::remove_file(file);
    }
    Ok(())
}

fn report_event(id: &JobId, event: &JobEvent) -> anyhow::Result<()> {
    Ok(line(&said(id, event))?)
}

/// A line for an event.
fn said(id: &JobId, JobEvent { name, document, .. }: &JobEvent) -> String {
    match name.as_str() {
        "step" => format!("{id} step {} of {}", document["step"], document["steps"]),
        "started" => format!("{id} started, attempt {}", document["attempt"]),
        "accepted" if document["position"].is_u64() => format!("{id} accepted, {} before it", document["position"]),
        _ => match document["error"]["message"].as_str() {
            Some(message) => shown::one_line(&format!("{id} {name}: {message}")),
            None => shown::one_line(&format!("{id} {name}")),
        },
    }
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

/// Writes the images of a complete job. `silence`: how long a store may send nothing.
async fn download(api: &Api, id: &JobId, job: &Value, directory: &Path, silence: Duration) -> anyhow::Result<()> {
    let images = job["result"]["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, image) in images.iter().enumerate() {
        let url = image["url"].as_str().context("the result has an image without an address")?;
        let what = format!("image {index} of {id}");
        let silent = || format!("{what} stopped coming: there was nothing for {silence:?}");
        let asked = timeout(silence, api.client.get(url).send()).await.with_context(silent)?;
        let mut response = asked.with_context(|| format!("{what} cannot be fetched"))?;
        if !response.status().is_success() {
            bail!("{what} cannot be fetched: the store answered {}", response.status());
        }
        let kind = image["content_type"].as_str().and_then(|kind| kind.strip_prefix("image/")).unwrap_or("png");
        let file = directory.join(format!("{id}-{index}.{kind}"));
        let unwritten = || format!("{} cannot be written", file.display());
        // Who looks at the file sees all of it, or none.
        let part = file.with_extension(format!("{kind}.part"));
        let mut writer = fs::File::create(&part).with_context(unwritten)?;
        while let Some(chunk) =
            timeout(silence, response.chunk()).await.with_context(silent)?.with_context(|| format!("{what} broke off"))?
        {
            writer.write_all(&chunk).with_context(unwritten)?;
        }
        fs::rename(&part, &file).with_context(unwritten)?;
        line(&format!("{id} {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Environment;

    #[test]
    fn what_a_job_says_is_one_line_that_steers_no_terminal() {
        let id = JobId::new("ada").expect("an id");
        let document = json!({ "error": { "message": "\x1b]0;pwn\x07red\nada-2 complete" } });
        let event = JobEvent::read(&format!("event: failed\ndata: {document}")).expect("an event");
        assert_eq!(said(&id, &event), "ada failed: ]0;pwn red ada-2 complete");
    }

    #[tokio::test]
    async fn an_image_that_stops_coming_ends_in_words_and_leaves_no_image() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/0.png", listener.local_addr().expect("an address"));
        let store = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            assert!(connection.read(&mut request).await.expect("read") > 0);
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc").await.expect("sent");
            std::future::pending::<()>().await;
        });
        let api = Api::new(Some("http://127.0.0.1:1"), None, &Environment::default()).expect("an address");
        let directory = tempfile::tempdir().expect("a directory");
        let id = JobId::new("ada").expect("an id");
        let job = json!({ "result": { "images": [{ "url": url, "content_type": "image/png" }] } });
        let error = download(&api, &id, &job, directory.path(), Duration::from_millis(300)).await.expect_err("it stops");
        assert_eq!(error.to_string(), "image 0 of ada stopped coming: there was nothing for 300ms");
        assert!(!directory.path().join("ada-0.png").exists());
        store.abort();
    }
}
