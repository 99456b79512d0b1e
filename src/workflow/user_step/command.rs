//! A program of the user's own: the question on its standard input, its answer on its standard output.
//!
//! - Of the environment it has `PATH` alone, and its working directory is that of this process.
//! - It must end with status 0 and within its time. Whatever ends the job ends it, with all that it has started.
//! - What it writes to standard error goes to the log, cut.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::time::timeout;

use super::settings::CommandSettings;
use crate::shown;
use crate::subprocess::{self, Spawner, signal_group};

/// Of standard error, in the log.
const MAX_STDERR_BYTES: u64 = 2_000;
/// Where programs are looked for when this process has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How the program is started.
#[derive(Debug, Clone)]
pub(super) struct Command {
    program: Vec<String>,
    path: String,
    limit: Duration,
    max_bytes: u64,
    spawner: Spawner,
}

impl Command {
    /// `path`: of this process.
    ///
    /// # Errors
    /// The key at fault, and why.
    pub(super) fn new(
        settings: &CommandSettings,
        path: Option<&str>,
        spawner: Spawner,
    ) -> Result<Self, (&'static str, String)> {
        let CommandSettings { program, timeout_ms, max_bytes } = settings;
        let path = path.unwrap_or(DEFAULT_PATH).to_owned();
        let Some(name) = program.first().filter(|name| !name.is_empty()) else {
            return Err(("program", "must be a list: a program, then its arguments".into()));
        };
        if *timeout_ms == 0 {
            return Err(("timeout_ms", "must be at least 1".into()));
        }
        if !is_found(name, &path) {
            let place = if name.contains('/') { "no file that can be run".to_owned() } else { format!("not in PATH ({path})") };
            return Err(("program", format!("{} is {place}", shown::text(name))));
        }
        let limit = Duration::from_millis(*timeout_ms);
        Ok(Self { program: program.clone(), path, limit, max_bytes: *max_bytes, spawner })
    }

    /// What it answers.
    ///
    /// # Errors
    /// In words, to follow the name of the step.
    pub(super) async fn answer(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        let limit_ms = self.limit.as_millis();
        let answer = timeout(self.limit, self.run(question)).await;
        answer.unwrap_or_else(|_| Err(format!("did not end within {limit_ms} ms, and was killed")))
    }

    async fn run(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        let mut command = tokio::process::Command::new(&self.program[0]);
        command.args(&self.program[1..]).env_clear().env("PATH", &self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawner.spawn(command).await.map_err(|error| format!("cannot be started ({error})"))?;
        let mut running = Running(child);
        let stdin = running.0.stdin.take();
        let stdout = running.0.stdout.take();
        let stderr = running.0.stderr.take();
        let written = async {
            if let Some(mut stdin) = stdin {
                // A program may answer without having read all of it, or anything.
                let _ = stdin.write_all(&question).await;
            }
            Ok(())
        };
        let answered = async {
            let (answer, more) = start_of(stdout, self.max_bytes).await;
            // At once: it may never end.
            if more.is_some() { Err(format!("answered more than {} bytes", self.max_bytes)) } else { Ok(answer) }
        };
        let said = async {
            let (said, mut more) = start_of(stderr, MAX_STDERR_BYTES).await;
            let is_cut = more.is_some();
            // What nobody reads would hold it up.
            if let Some(more) = &mut more {
                let _ = tokio::io::copy(more, &mut tokio::io::sink()).await;
            }
            Ok((said, is_cut))
        };
        let (answer, (said, is_cut), (), status) = tokio::try_join!(answered, said, written, running.ended())?;
        if !said.is_empty() {
            let said = shown::without_queries(&String::from_utf8_lossy(&said));
            tracing::warn!(program = self.program[0], stderr = said, cut = is_cut, "a step wrote to its standard error");
        }
        if status.success() {
            Ok(answer)
        } else {
            Err(format!("ended with {status}; the log has what it wrote to standard error"))
        }
    }
}

/// A process that is killed, with all that it has started, when nobody waits for it any more.
struct Running(Child);

impl Running {
    /// Waits for it, and ends what it has started and left behind.
    async fn ended(&mut self) -> Result<ExitStatus, String> {
        let Some(id) = subprocess::id(&self.0) else { return Err("is gone".to_owned()) };
        // Without reaping it: until then its id is that of its group, and no one else's.
        let ended = tokio::task::spawn_blocking(move || waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
        ended.await.map_err(|panic| panic.to_string())?.map_err(|error| format!("cannot be waited for ({error})"))?;
        signal_group(&self.0, Signal::KILL);
        self.0.wait().await.map_err(|error| format!("cannot be waited for ({error})"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        signal_group(&self.0, Signal::KILL);
    }
}

/// The first `max_bytes` of a stream, and the stream itself if there is more of it.
async fn start_of<S: AsyncRead + Unpin>(stream: Option<S>, max_bytes: u64) -> (Vec<u8>, Option<S>) {
    let mut start = Vec::new();
    let Some(stream) = stream else { return (start, None) };
    let mut stream = stream.take(max_bytes.saturating_add(1));
    // A stream that breaks has ended: what is missing of an answer shows when it is read.
    let _ = stream.read_to_end(&mut start).await;
    let has_more = start.len() as u64 > max_bytes;
    start.truncate(max_bytes.min(start.len() as u64) as usize);
    (start, has_more.then(|| stream.into_inner()))
}

fn is_found(name: &str, path: &str) -> bool {
    let is_program = |file: &Path| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    if name.contains('/') {
        return is_program(Path::new(name));
    }
    path.split(':').any(|directory| is_program(&Path::new(directory).join(name)))
}
