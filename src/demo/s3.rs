//! The embedded S3 server: the real protocol with signatures checked, over a directory, on loopback.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::error_handling::HandleError;
use axum::http::StatusCode;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

use super::long_keys::LongKeys;
use crate::host::listener::prompt;

pub const ACCESS_KEY_ID: &str = "atelier-demo";
pub const SECRET_ACCESS_KEY: &str = "atelier-demo-secret";

/// The server itself, with the directories in `root` as buckets.
///
/// # Errors
/// When the directory cannot be used.
pub fn router(root: &Path) -> io::Result<Router> {
    let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{}: {error:?}", root.display())))?;
    let mut builder = S3ServiceBuilder::new(LongKeys::new(files, root)?);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = HandleError::new(builder.build(), |error: s3s::HttpError| async move {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}"))
    });
    Ok(Router::new().fallback_service(service))
}

/// Serves the directories in `root` until the process ends.
///
/// # Errors
/// When the directory cannot be used or the address not be listened on.
pub async fn serve(root: &Path, address: SocketAddr) -> io::Result<SocketAddr> {
    let router = router(root)?;
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(prompt(listener), router).await });
    Ok(address)
}
