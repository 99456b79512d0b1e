//! What the function talks to, embedded: an S3 server with a bucket and sample inputs in it, a webhook receiver.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::receiver::{self, Notification};
use super::s3;
use crate::config::{Config, Environment};

pub const BUCKET: &str = "atelier-demo";
/// The signing secret of the demo; a real one comes from the operator.
pub const WEBHOOK_SECRET: &str = "whsec_YXRlbGllci1kZW1vLXNlY3JldC1vbmx5LWhlcmU=";

/// The embedded servers, listening on loopback until the process ends.
pub struct Local {
    pub config: Config,
    pub environment: Environment,
    pub s3: SocketAddr,
    pub webhooks: SocketAddr,
    pub notifications: UnboundedReceiver<Notification>,
}

/// Starts both servers over `directory` (the bucket's content survives in it) and puts the bundled LoRAs and sample images into the bucket.
/// Ports are `wanted_port` and the one after it, or free ones where there is no wish or another program has them. `outside`: the
/// environment of this process, which may say where the models are.
///
/// # Errors
/// When the directory cannot be used, or the models are nowhere.
pub async fn start(directory: &Path, wanted_port: Option<u16>, outside: &Environment) -> anyhow::Result<Local> {
    fs::create_dir_all(directory.join(BUCKET)).with_context(|| format!("{} cannot be made", directory.display()))?;
    let s3 = at_port(wanted_port, |address| s3::serve(directory, address));
    let s3 = s3.await.context("the embedded S3 server cannot start")?;
    let receiver = at_port(wanted_port.map(|port| port + 1), |address| receiver::serve(WEBHOOK_SECRET, address));
    let (webhooks, notifications) = receiver.await.context("the embedded webhook receiver cannot start")?;
    let mut environment = Environment::from([
        ("S3_ENDPOINT".to_owned(), format!("http://{s3}")),
        ("S3_ACCESS_KEY_ID".to_owned(), s3::ACCESS_KEY_ID.to_owned()),
        ("S3_SECRET_ACCESS_KEY".to_owned(), s3::SECRET_ACCESS_KEY.to_owned()),
        ("WEBHOOK_ENDPOINT".to_owned(), format!("http://{webhooks}")),
        ("WEBHOOK_SECRET".to_owned(), WEBHOOK_SECRET.to_owned()),
    ]);
    environment.extend(outside.get("ATELIER_HOME").map(|home| ("ATELIER_HOME".to_owned(), home.clone())));
    let config = Config::parse("demo config.yaml", include_str!("config.yaml"), &environment)?;
    let model = config.manifest_of(&config.model.name, &environment)?.checkpoint;
    upload_inputs(&model.join("lora"), s3).await?;
    Ok(Local { config, environment, s3, webhooks, notifications })
}

/// Starts a server at a port, or at a free one where another program has it.
async fn at_port<T, F: Future<Output = io::Result<T>>>(port: Option<u16>, serve: impl Fn(SocketAddr) -> F) -> io::Result<T> {
    match serve(SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)))).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await,
        served => served,
    }
}

/// What the sample events for try-ons speak of.
const IMAGES: [(&str, &[u8]); 2] = [("person.png", include_bytes!("../../events/images/person.png")), ("garment.png", GARMENT)];
pub const GARMENT: &[u8] = include_bytes!("../../events/images/garment.png");

/// The bundled LoRAs and sample images go in through the protocol, as a user's would.
async fn upload_inputs(loras: &Path, s3: SocketAddr) -> anyhow::Result<()> {
    let credentials = Credentials::new(s3::ACCESS_KEY_ID, s3::SECRET_ACCESS_KEY, None, None, "demo");
    let settings = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{s3}"))
        .force_path_style(true)
        .credentials_provider(credentials)
        .build();
    let client = aws_sdk_s3::Client::from_conf(settings);
    for path in lora_files(loras)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let body = ByteStream::from(fs::read(&path)?);
        client.put_object().bucket(BUCKET).key(format!("loras/{name}")).body(body).send().await?;
    }
    for (name, bytes) in IMAGES {
        let body = ByteStream::from_static(bytes);
        client.put_object().bucket(BUCKET).key(format!("images/{name}")).body(body).send().await?;
    }
    Ok(())
}

fn lora_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    Ok(files)
}
