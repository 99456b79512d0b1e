//! `moto_server` from the Python venv: S3 whose conditional writes are atomic, and that answers 304.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tokio::sync::oneshot;

use super::DEADLINE;

pub(crate) struct Moto {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Moto {
    pub(crate) async fn start(venv: &Path) -> Self {
        Self::of(Command::new(venv.join("bin/moto_server")).args(["-H", "127.0.0.1", "-p", "0"])).await
    }

    /// As another program starts it.
    pub(crate) async fn of(program: &mut Command) -> Self {
        let mut process = program.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("moto_server of the venv");
        let mut log = BufReader::new(process.stderr.take().expect("its stderr")).lines();
        let (ready, address) = oneshot::channel();
        thread::spawn(move || {
            let address = log
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| line.split_once("Running on http://").map(|(_, address)| address.trim().to_owned()));
            let _ = ready.send(address);
            log.for_each(drop);
        });
        let address = tokio::time::timeout(DEADLINE, address).await.expect("moto_server starts in time");
        let address = address.ok().flatten().and_then(|address| address.parse().ok()).expect("moto_server says where it is");
        Self { address, process }
    }

    /// moto takes unsigned requests: a bucket is one PUT.
    pub(crate) async fn create_bucket(&self, bucket: &str) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.put(format!("http://{}/{bucket}", self.address)).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It takes its time on SIGTERM and has nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
