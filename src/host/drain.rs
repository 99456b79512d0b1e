//! What asks a host to end: SIGTERM, Ctrl-C, a notice that the machine is taken away.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::cloud::interruption::Interruption;

/// Every SIGTERM and SIGINT of this process as one word in the channel.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn signals(orders: mpsc::Sender<&'static str>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
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

/// The notice of an interruption as a word in the channel.
pub fn interruption(interruption: Interruption, orders: mpsc::Sender<&'static str>) {
    tokio::spawn(async move {
        let notice = interruption.notice().await;
        tracing::warn!(action = notice.action, time = notice.time, "the machine is about to be taken away");
        // A host that is gone has drained.
        let _ = orders.send("interruption notice").await;
    });
}
