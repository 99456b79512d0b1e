//! A TCP proxy that can be cut, that can fall silent, and behind which nobody may be for a while.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
    silent: watch::Sender<bool>,
    away: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (silent, is_silent) = watch::channel(false);
        let (away, is_away) = watch::channel(false);
        let connections = Arc::<Mutex<JoinSet<()>>>::default();
        let all = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *is_away.borrow() {
                    continue;
                }
                all.lock().await.spawn(serve(client, to, is_silent.clone()));
            }
        });
        Self { address, connections, silent, away }
    }

    /// Ends every connection, and silence; new connections are taken. Nothing goes through from here on that is under way.
    pub(crate) async fn cut(&self) {
        self.silent.send_replace(false);
        self.connections.lock().await.shutdown().await;
    }

    /// Ends every connection and, until [`Self::come_back`], each new one.
    pub(crate) async fn go_away(&self) {
        self.away.send_replace(true);
        self.cut().await;
    }

    pub(crate) fn come_back(&self) {
        self.away.send_replace(false);
    }

    /// Connections stay, nothing goes through any more, and no one is notified.
    pub(crate) fn fall_silent(&self) {
        self.silent.send_replace(true);
    }
}

async fn serve(mut client: TcpStream, to: SocketAddr, mut silent: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    let notified = async move { drop(silent.wait_for(|silent| *silent).await) };
    tokio::select! {
        biased;
        () = notified => std::future::pending().await,
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
}
