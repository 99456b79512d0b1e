//! What tells a host to end: SIGTERM, Ctrl-C.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Every SIGTERM and SIGINT of this process as one word in the channel.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn signals(orders: mpsc::Sender<&'static str>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if orders.send(order).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
