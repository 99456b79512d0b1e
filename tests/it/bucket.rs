//! A bucket on a real S3 server that can be watched and held up: the embedded one, behind a gate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier::demo::{local, s3};
use axum::extract::{Request, State};
use axum::http::header::IF_NONE_MATCH;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

pub(crate) struct Bucket {
    pub(crate) address: SocketAddr,
    root: TempDir,
    hold: watch::Sender<Option<&'static str>>,
    held: mpsc::UnboundedReceiver<()>,
    refuse: Arc<AtomicBool>,
    trouble: watch::Sender<Trouble>,
    puts: Arc<Mutex<Vec<String>>>,
}

/// What ails the server, whatever it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// Half of all requests are answered 500, in no order that a client could fall into step with.
    Errors,
    /// Every request waits so long before it is served.
    Slow(Duration),
    /// Every request is answered 503.
    Away,
    /// Something else stands there: every request is answered 200, with a page.
    Page,
    /// Nothing may be written: every PUT is answered 403.
    ReadOnly,
    /// Keys that contain this may not be written: 403.
    Denied(&'static str),
    /// Every write on condition is answered 501, as by old servers.
    NoConditions,
    /// Every write with a checksum header of AWS's SDKs is answered 501.
    NoChecksums,
    /// PUTs of keys with this ending are served, and their answers lost: 500.
    LostAnswers(&'static str),
}

/// A fair coin for each number (`SplitMix64`, Steele and others 2014).
fn is_unlucky(number: u64) -> bool {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 63 == 1
}

/// Whether an object key is that of image `n` of a job: `generations/{job_id}/{12 of the fingerprint}-{attempt}/{n}.png`.
pub(crate) fn is_image_key(key: &str, job_id: &str, n: usize) -> bool {
    let [prefix, id, attempt, file] = key.split('/').collect::<Vec<_>>()[..] else { return false };
    let request = attempt.split_once('-').filter(|(_, attempt)| !attempt.is_empty()).map(|(request, _)| request);
    let is_hex = request.is_some_and(|text| text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (prefix, id) == ("generations", job_id) && file == format!("{n}.png") && is_hex
}

/// Whether an object is a record, a note or a claim, and no image.
pub(crate) fn is_json(key: &str) -> bool {
    Path::new(key).extension().is_some_and(|extension| extension == "json")
}

/// Objects that are replaced.
const CLAIMS: &str = "/idempotency/";

struct Gate {
    trouble: watch::Receiver<Trouble>,
    requests: AtomicUsize,
    hold: watch::Receiver<Option<&'static str>>,
    refuse: Arc<AtomicBool>,
    held: mpsc::UnboundedSender<()>,
    puts: Arc<Mutex<Vec<String>>>,
    /// Conditional writes come one by one, as S3 has them: the embedded store writes an object and its checksum apart, and racers
    /// would leave one's object under the other's checksum.
    condition: tokio::sync::Mutex<()>,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join(local::BUCKET)).unwrap();
        let (hold, holding) = watch::channel(None);
        let (trouble, troubled) = watch::channel(Trouble::None);
        let (sender, held) = mpsc::unbounded_channel();
        let refuse = Arc::<AtomicBool>::default();
        let puts = Arc::<Mutex<Vec<String>>>::default();
        let gate = Arc::new(Gate {
            trouble: troubled,
            requests: AtomicUsize::new(0),
            hold: holding,
            refuse: Arc::clone(&refuse),
            held: sender,
            puts: Arc::clone(&puts),
            condition: tokio::sync::Mutex::default(),
        });
        let router = s3::router(root.path()).unwrap().layer(from_fn_with_state(gate, pass));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, root, hold, held, refuse, trouble, puts }
    }

    /// Holds up every PUT of a key with this ending; `None` answers those with 503 and lets the next through.
    pub(crate) fn hold(&self, ending: Option<&'static str>) {
        self.hold.send_replace(ending);
    }

    /// Answers every PUT with 503, as a bucket that throttles.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// The keys of the PUTs that went through, in their order.
    pub(crate) fn keys_put(&self) -> Vec<String> {
        self.puts.lock().unwrap().clone()
    }

    /// Waits until a PUT is being held up.
    pub(crate) async fn holding(&mut self) {
        timeout(Duration::from_mins(1), self.held.recv()).await.expect("nothing to hold up for a minute").unwrap();
    }

    /// How many PUTs of keys with this ending went through.
    pub(crate) fn puts(&self, ending: &str) -> usize {
        self.puts.lock().unwrap().iter().filter(|key| key.ends_with(ending)).count()
    }

    /// Where image `n` of a job lies on disk, whatever attempt made it; the last of them where there are several.
    pub(crate) fn image(&self, job_id: &str, n: usize) -> PathBuf {
        let job = self.path(&format!("generations/{job_id}"));
        let attempts = std::fs::read_dir(&job).into_iter().flatten().map(|entry| entry.unwrap().path());
        let images = attempts.map(|attempt| attempt.join(format!("{n}.png"))).filter(|image| image.exists());
        images.max().unwrap_or_else(|| job.join("no image"))
    }

    /// Where an object lies on disk.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(local::BUCKET).join(key)
    }
}

fn not_implemented() -> Response {
    let answer = "<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that is not \
                  implemented</Message></Error>";
    (StatusCode::NOT_IMPLEMENTED, answer).into_response()
}

fn denied() -> Response {
    let answer = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    (StatusCode::FORBIDDEN, answer).into_response()
}

fn has_checksum(request: &Request) -> bool {
    request.method() == Method::PUT
        && request.headers().keys().any(|name| name.as_str().starts_with("x-amz-checksum-") || name == "x-amz-trailer")
}

async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let key = request.uri().path().to_owned();
    let number = gate.requests.fetch_add(1, Ordering::SeqCst);
    let trouble = *gate.trouble.borrow();
    match trouble {
        Trouble::Errors if is_unlucky(number as u64) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Trouble::Slow(pause) => tokio::time::sleep(pause).await,
        Trouble::Away => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Trouble::Page => return "<html>Please log in</html>".into_response(),
        Trouble::ReadOnly if request.method() == Method::PUT => return denied(),
        Trouble::Denied(part) if request.method() == Method::PUT && key.contains(part) => return denied(),
        Trouble::NoConditions if request.headers().contains_key(IF_NONE_MATCH) => return not_implemented(),
        Trouble::NoChecksums if has_checksum(&request) => return not_implemented(),
        _ => {}
    }
    if request.method() == Method::PUT {
        if gate.refuse.load(Ordering::SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let mut hold = gate.hold.clone();
        let is_held = |hold: Option<&'static str>| hold.is_some_and(|ending| key.ends_with(ending));
        if is_held(*hold.borrow()) {
            let _ = gate.held.send(());
            let _ = hold.wait_for(|hold| !is_held(*hold)).await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let in_turn = request.headers().contains_key(IF_NONE_MATCH) || key.contains(CLAIMS);
        let turn = if in_turn { Some(gate.condition.lock().await) } else { None };
        let response = next.run(request).await;
        drop(turn);
        let loses = matches!(trouble, Trouble::LostAnswers(ending) if key.ends_with(ending));
        if response.status().is_success() {
            gate.puts.lock().unwrap().push(key);
        }
        return if loses { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { response };
    }
    // An object that is replaced is the old one or the new one, and never a part of each.
    let _turn = if key.contains(CLAIMS) { Some(gate.condition.lock().await) } else { None };
    next.run(request).await
}
