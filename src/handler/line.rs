//! Listens to the host on standard input ([`crate::protocol::control`]).

use std::io::BufRead;

use tokio::sync::mpsc;

use crate::protocol::control::ControlCommand;

/// What the host says. When it says nothing more, because it ended, the channel is closed.
pub type ControlCommands = mpsc::UnboundedReceiver<ControlCommand>;

/// Reads orders on a thread of its own: a blocked read of standard input would keep tokio's runtime from ending.
///
/// # Errors
/// When the thread cannot be started.
pub fn listen(mut input: impl BufRead + Send + 'static) -> std::io::Result<ControlCommands> {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("host line".into()).spawn(move || {
        let mut line = String::new();
        while input.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let Some(order) = ControlCommand::decode(&line) else {
                tracing::warn!(line, "an order of the host is not known here: update the handler with the host");
                line.clear();
                continue;
            };
            if sender.send(order).is_err() {
                return;
            }
            line.clear();
        }
    })?;
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_come_in_order_until_the_host_is_gone() {
        let input = std::io::Cursor::new("cancel job-1\nregenerate job-2\ncancel job-3\r\n");
        let mut orders = listen(input).unwrap();
        assert_eq!(orders.recv().await, Some(ControlCommand::Cancel("job-1".into())));
        assert_eq!(orders.recv().await, Some(ControlCommand::Cancel("job-3".into())));
        assert_eq!(orders.recv().await, None);
    }
}
