//! How connections are taken: answers leave at once.

use axum::serve::{Listener, ListenerExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Without Nagle's algorithm: the body of an answer that follows its head would wait for the caller's delayed
/// acknowledgement, 40 ms.
pub(crate) fn prompt(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = std::net::SocketAddr> {
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
    })
}
