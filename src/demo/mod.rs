//! `atelier demo`: the whole function on one machine, with nothing else installed.

mod host;
pub mod local;
mod long_keys;
pub mod receiver;
pub mod s3;
pub mod screen;
pub mod sheet;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use self::local::Local;
use self::receiver::Notification;
use self::screen::Screen;
use crate::authorities;
use crate::config::Environment;
use crate::content_credentials::development;
use crate::handler::Handler;
use crate::job::task::ModelName;
use crate::start;
use crate::workflow::control::{Control, Shutdown};
use crate::workflow::infer::Observer;
use atelier_engine::Image;

/// A function with the sample events for it, as they lie in `events/`: source, file, content.
struct Function {
    model: &'static str,
    events: &'static [(&'static str, &'static str, &'static str)],
}

/// Of the S3 server that stays up, the webhook receiver's comes next: what another shell has exported still holds when the demo is started
/// again. Where another program has one of them it is a free one.
const SERVED_PORT: u16 = 9444;

/// One that generates from text and one that does try-ons: a function serves one model.
const FUNCTIONS: [Function; 2] = [
    Function {
        model: "tiny-sd",
        events: &[
            ("SQS", "events/sqs-plain.json", include_str!("../../events/sqs-plain.json")),
            ("RabbitMQ, with LoRA and watermark", "events/rabbitmq-lora.json", include_str!("../../events/rabbitmq-lora.json")),
            ("HTTP, four images", "events/http-four.json", include_str!("../../events/http-four.json")),
        ],
    },
    Function {
        model: "tiny-edit",
        events: &[
            ("SQS, a try-on", "events/sqs-tryon.json", include_str!("../../events/sqs-tryon.json")),
            (
                "SQS, a try-on that masks the clothes",
                "events/sqs-tryon-mask.json",
                include_str!("../../events/sqs-tryon-mask.json"),
            ),
        ],
    },
];

#[derive(clap::Args)]
pub struct Options {
    /// Directory for the images, the contact sheet and the embedded bucket
    #[arg(long, default_value = "out")]
    out: PathBuf,
    /// Afterwards open a page to try it, on a host over the embedded S3 server and webhook receiver; print the environment to use these
    #[arg(long)]
    serve: bool,
    /// With --serve: keep the embedded servers running without a host and its page
    #[arg(long, requires = "serve")]
    no_host: bool,
}

/// Generates the sample events and shows everything that happens.
///
/// # Errors
/// When something cannot be started, a job failed, or an image did not arrive.
pub async fn run(options: &Options, outside: &Environment) -> anyhow::Result<()> {
    let started = Instant::now();
    let screen = Arc::new(Screen::new());
    let bucket = options.out.join("s3");
    // A demo that replayed yesterday's images would show nothing.
    if bucket.exists() {
        fs::remove_dir_all(&bucket).with_context(|| format!("{} cannot be emptied", bucket.display()))?;
    }
    let local = local::start(&bucket, options.serve.then_some(SERVED_PORT), outside).await?;
    let generator = Arc::clone(&screen);
    let observer = Observer { step: Arc::new(move |job, now| generator.progress(job.as_str(), now)), previews: None };
    let Local { mut config, environment, s3, webhooks, notifications } = local;
    // It makes its own key there, once; no one trusts what it signs.
    let signer = options.out.join("signer");
    config.content_credentials.development_directory = Some(signer.clone());
    let listener = listen(notifications, Arc::clone(&screen));
    for Function { model, events } in FUNCTIONS {
        config.model.name = ModelName::new(model).map_err(anyhow::Error::msg)?;
        let before = Instant::now();
        let mut handler = start::handler(&config, &environment, observer.clone()).await?;
        screen.line(&format!("\n{model} is loaded and warm after {:.1} s", before.elapsed().as_secs_f64()));
        for (source, file, event) in events {
            screen.line(&format!("\n{file} ({source})"));
            let before = Instant::now();
            generate(&mut handler, event).await?;
            let total = started.elapsed().as_secs_f64();
            screen.line(&format!("  done in {:.1} s ({total:.1} s after the start)", before.elapsed().as_secs_f64()));
        }
    }
    screen.finish();
    // The handler has been answered for every notification: the listener has them all.
    listener.stop.send(()).ok();
    let (completed, notifications) = listener.completed.await?;
    let images = save(&options.out, completed).await?;

    screen.line(&format!("\n{images} images and contact-sheet.png in {}/", options.out.display()));
    screen.line(&format!("the bucket, as the embedded S3 server stored it: {}/", bucket.join(local::BUCKET).display()));
    let root = signer.join(development::ROOT);
    screen.line(&format!("every image is signed for development; its root is {}, for `atelier inspect`", root.display()));
    if !options.serve {
        screen.line(&format!("\nwith --serve it opens a page to try it yourself, at http://127.0.0.1:{}/", host::PORT));
        return Ok(());
    }
    // What comes now is of another process's jobs.
    let _listener = listen(notifications, Arc::clone(&screen));
    print_exports(&screen, s3, webhooks);
    if options.no_host {
        tokio::signal::ctrl_c().await?;
        return Ok(());
    }
    host::serve(&screen, &host::Parts { out: &options.out, config: &config, environment: &environment, outside }).await
}

async fn generate(handler: &mut Handler, event: &str) -> anyhow::Result<()> {
    let (_switch, shutdown) = Shutdown::channel();
    let reply = handler.handle(serde_json::from_str(event)?, &Control::unlimited(shutdown)).await?;
    let refused = reply["batchItemFailures"].as_array().is_some_and(|failures| !failures.is_empty());
    let status = reply["statusCode"].as_u64().unwrap_or(200);
    anyhow::ensure!(!refused && status == 200, "the job failed; the reply was {reply}");
    Ok(())
}

struct Listener {
    stop: tokio::sync::oneshot::Sender<()>,
    /// The `complete` ones, and where further ones come out.
    completed: JoinHandle<(Vec<Value>, UnboundedReceiver<Notification>)>,
}

/// Shows every notification as it arrives and keeps the `complete` ones.
fn listen(mut notifications: UnboundedReceiver<Notification>, screen: Arc<Screen>) -> Listener {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let completed = tokio::spawn(async move {
        let mut completed = Vec::new();
        loop {
            let notification = tokio::select! {
                biased;
                notification = notifications.recv() => notification,
                _ = &mut stopped => return (completed, notifications),
            };
            let Some(Notification { method, path, webhook_id, body }) = notification else {
                return (completed, notifications);
            };
            let what = match body["progress"].as_u64() {
                Some(percent) => format!("{percent:>3} %"),
                None => format!("images: {}, {webhook_id}", body["images"].as_array().map_or(0, Vec::len)),
            };
            let job = body["job_id"].as_str().unwrap_or("?");
            screen.line(&format!("  webhook {method} {path}  {job}  {what}"));
            if path.ends_with("/complete") {
                completed.push(body);
            }
        }
    });
    Listener { stop, completed }
}

async fn download(url: &str) -> reqwest::Result<bytes::Bytes> {
    authorities::client().build()?.get(url).send().await?.error_for_status()?.bytes().await
}

/// Downloads every image from the address in its notification, as a backend would, and lays them out on one sheet.
async fn save(out: &Path, completed: Vec<Value>) -> anyhow::Result<usize> {
    let mut images = Vec::new();
    let mut saved = 0;
    for body in &completed {
        for (number, image) in body["images"].as_array().into_iter().flatten().enumerate() {
            let url = image["url"].as_str().context("a complete notification without an image address")?;
            // The address is presigned: an error must not print it.
            let file = download(url).await.map_err(reqwest::Error::without_url)?;
            let job = body["job_id"].as_str().unwrap_or("job");
            fs::write(out.join(format!("{job}-{number}.png")), &file)?;
            let seed = image["seed"].as_u64().unwrap_or_default();
            let image = opened(&file, seed)?;
            let asked = sheet::asked(&file);
            if number == 0 && asked.as_ref().is_some_and(sheet::is_try_on) {
                images.push(("the garment of the next image".to_owned(), opened(local::GARMENT, 0)?));
            }
            images.push((asked.map_or_else(|| format!("{job}\nseed {seed}"), |asked| sheet::caption(&asked)), image));
            saved += 1;
        }
    }
    anyhow::ensure!(saved > 0, "no image arrived");
    let sheet = sheet::contact_sheet(&images);
    image::save_buffer(out.join("contact-sheet.png"), &sheet.rgb, sheet.width_px, sheet.height_px, image::ColorType::Rgb8)?;
    Ok(saved)
}

fn opened(file: &[u8], seed: u64) -> anyhow::Result<Image> {
    let rgb = image::load_from_memory(file)?.into_rgb8();
    Ok(Image { width_px: rgb.width(), height_px: rgb.height(), rgb: rgb.into_raw(), seed })
}

/// What a handler or a host in another process needs to use the embedded servers.
fn print_exports(screen: &Screen, s3: std::net::SocketAddr, webhooks: std::net::SocketAddr) {
    screen.line("\nthe embedded servers stay up until Ctrl-C; in another shell:");
    for (name, value) in [
        ("ATELIER__STORE__BUCKET", local::BUCKET),
        ("ATELIER__STORE__ENDPOINT_URL", &format!("http://{s3}")),
        ("ATELIER__STORE__FORCE_PATH_STYLE", "true"),
        ("ATELIER__STORE__REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_ACCESS_KEY),
        ("BACKEND_API_URL", &format!("http://{webhooks}")),
        ("INTERNAL_API_TOKEN", "demo-token-demo-token-demo-token"),
        ("WEBHOOK_SIGNING_SECRET", local::WEBHOOK_SECRET),
    ] {
        screen.line(&format!("  export {name}={value}"));
    }
}
