//! An HTTP server that answers as the test scripted it, byte by byte, and remembers what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use url::Url;

use super::DEADLINE;

/// What one request is answered with.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The whole response, status line first.
    Raw(String),
    /// Nothing, and the connection stays open.
    Never,
    /// Nothing, and the connection is closed.
    HangUp,
    /// A body without an end and without a length.
    Endless,
    /// The head and a first byte of a body, then silence.
    Stall,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self::with(status, &[], "")
    }

    pub(crate) fn with(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut response = format!("HTTP/1.1 {status} Test\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        for (name, value) in headers {
            response.extend([name, ": ", value, "\r\n"]);
        }
        Self::Raw(response + "\r\n" + body)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

/// The server; the last answer of its script is given again and again.
#[derive(Debug, Clone)]
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    script: Mutex<VecDeque<Answer>>,
    requests: Mutex<Vec<Request>>,
    arrived: Notify,
}

impl HttpServer {
    pub(crate) async fn start(script: &[Answer]) -> Self {
        Self::start_at("127.0.0.1:0", script).await
    }

    pub(crate) async fn start_at(address: &str, script: &[Answer]) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let script = Mutex::new(script.iter().cloned().collect());
        let state = Arc::new(State { script, requests: Mutex::default(), arrived: Notify::new() });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).expect("an address")
    }

    /// Answers from now on.
    pub(crate) fn script(&self, script: &[Answer]) {
        *self.state.script.lock().expect("no panic under the lock") = script.iter().cloned().collect();
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().expect("no panic under the lock").clone()
    }

    /// Waits for the `count`th request.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Request> {
        let enough = async {
            loop {
                let arrived = self.state.arrived.notified();
                if self.requests().len() >= count {
                    return self.requests();
                }
                arrived.await;
            }
        };
        tokio::time::timeout(DEADLINE, enough).await.expect("more requests")
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream).await else { return };
    state.requests.lock().expect("no panic under the lock").push(request);
    let answer = {
        let mut script = state.script.lock().expect("no panic under the lock");
        if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
    };
    state.arrived.notify_waiters();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\netag: \"one\"\r\n";
    // A client that hangs up early is what some tests want to see.
    let _ = match answer.unwrap_or(Answer::HangUp) {
        Answer::Raw(text) => stream.write_all(text.as_bytes()).await,
        Answer::HangUp => Ok(()),
        Answer::Never => std::future::pending().await,
        Answer::Stall => {
            let _ = stream.write_all(format!("{head}content-length: 1000\r\n\r\nx").as_bytes()).await;
            std::future::pending().await
        }
        Answer::Endless => {
            let mut written = stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await;
            while written.is_ok() {
                written = stream.write_all(&[b'x'; 4096]).await;
            }
            written
        }
    };
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let method = words.next()?.to_owned();
    let path = words.next()?.to_owned();
    let mut headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.append(name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?);
    }
    let length = headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, path, headers, body, at: Instant::now() })
}
