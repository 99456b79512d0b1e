//! Stands between the broker's socket and lapin, so that only frames get through that lapin can parse.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use async_compat::{Compat, CompatExt as _};
use lapin::tcp::AsyncTcpStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::frame::{END_BYTES, HEAD_BYTES, HEADERS_MAX_BYTES, headers_max_bytes, payload_bytes, sanitized};

/// `AMQP0091` in front of a frame means that the broker does not speak our version; what follows is no frame.
const NO_FRAME: u8 = b'A';
/// Bytes of one frame, at most: many times what brokers allow.
const FRAME_MAX_BYTES: usize = 16 << 20;

/// The near end of a pair of sockets whose other end is `broker` behind the filter. The pair ends with either side.
///
/// # Errors
/// When there is no descriptor for it.
pub(super) fn filtered(
    broker: AsyncTcpStream<Compat<TcpStream>>,
    runtime: &Handle,
) -> io::Result<AsyncTcpStream<Compat<TcpStream>>> {
    let (near, far) = UnixStream::pair()?;
    let _runtime = runtime.enter();
    let near = socket(near)?;
    let far = socket(far)?;
    runtime.spawn(async move {
        let (from_broker, mut to_broker) = split(broker.compat());
        let (mut from_lapin, to_lapin) = far.into_split();
        // Either direction ends both: the sockets are closed when this is over.
        tokio::select! {
            received = receive(from_broker, to_lapin) => {
                if let Err(error) = received {
                    tracing::debug!(%error, "the broker's frames ended early");
                }
            }
            _ = copy(&mut from_lapin, &mut to_broker) => {
                let _ = to_broker.shutdown().await;
            }
        }
    });
    Ok(AsyncTcpStream::Plain(Compat::new(near)))
}

/// One end of a pair as the type that lapin's runtime works with: a descriptor that is read and written in the same way.
fn socket(end: UnixStream) -> io::Result<TcpStream> {
    end.set_nonblocking(true)?;
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(end)))
}

/// Every frame of the broker, as it can be parsed, until one side is gone.
async fn receive(mut broker: impl AsyncRead + Unpin, mut lapin: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut frame = Vec::new();
    let mut headers_max = HEADERS_MAX_BYTES;
    loop {
        let mut head = [0; HEAD_BYTES];
        broker.read_exact(&mut head).await?;
        if head[0] == NO_FRAME {
            lapin.write_all(&head).await?;
            return copy(&mut broker, &mut lapin).await.map(drop);
        }
        let rest = payload_bytes(head).saturating_add(END_BYTES);
        if rest > FRAME_MAX_BYTES {
            return Err(io::Error::other(format!("a frame of {rest} bytes, at most {FRAME_MAX_BYTES} are taken")));
        }
        frame.clear();
        frame.extend(head);
        frame.resize(HEAD_BYTES + rest, 0);
        broker.read_exact(&mut frame[HEAD_BYTES..]).await?;
        headers_max = headers_max_bytes(&frame).unwrap_or(headers_max);
        match sanitized(&frame, headers_max) {
            Some(safe) => lapin.write_all(&safe).await?,
            None => lapin.write_all(&frame).await?,
        }
    }
}
