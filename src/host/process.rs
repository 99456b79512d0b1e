//! One handler process: started so that it cannot outlive the host, watched, ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::cause::oom_kills;
use crate::protocol::control::{self, ControlCommand};
use crate::subprocess::{Spawner, signal_group};

/// How every handler is started.
#[derive(Debug, Clone)]
pub struct Program {
    pub path: OsString,
    pub arguments: Vec<OsString>,
    /// Name of the function, as the Runtime API reports it.
    pub function_name: String,
    /// MiB, as the Runtime API reports it.
    pub memory_mib: u32,
    /// All that it gets of the host's environment.
    pub environment: BTreeMap<String, String>,
}

/// Commands that wait for a handler to read them, at most: more than an event has jobs to cancel.
const OUTGOING_MAX: usize = 64;

/// Hears every line of a handler's standard output.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// A running handler process.
pub struct Process {
    child: Child,
    /// Commands on their way to the handler's standard input.
    outgoing: Option<mpsc::Sender<String>>,
    _writer: Option<AbortOnDropHandle<()>>,
    oom_kills_before: u64,
    /// Its thread must not end before the process does.
    _launcher: Launcher,
}

/// Starts handlers.
#[derive(Clone)]
pub struct Launcher(Spawner);

impl Launcher {
    /// # Errors
    /// When its thread cannot be started.
    pub fn start() -> io::Result<Self> {
        Spawner::start("launcher").map(Self)
    }

    /// Starts a handler that finds its Runtime API at `runtime_api`. `gpu`: the value of `CUDA_VISIBLE_DEVICES`, where the
    /// handler is to see one GPU only.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn launch(
        &self,
        program: &Program,
        runtime_api: SocketAddr,
        gpu: Option<&str>,
        listener: Listener,
    ) -> io::Result<Process> {
        let oom_kills_before = oom_kills();
        let mut child = self.0.spawn(program.command(runtime_api, gpu)).await?;
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(follow(stdout, listener));
        }
        let (outgoing, writer) = child.stdin.take().map(write).unzip();
        Ok(Process { child, outgoing, _writer: writer, oom_kills_before, _launcher: self.clone() })
    }
}

impl Program {
    fn command(&self, runtime_api: SocketAddr, gpu: Option<&str>) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .env("AWS_LAMBDA_RUNTIME_API", runtime_api.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", &self.function_name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", self.memory_mib.to_string())
            // The lines on standard input and output by which host and handler say more to each other than the Runtime API can.
            .envs(control::encode_environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It is started in a group of its own: Ctrl-C in a terminal reaches the host, which lets the running job finish.
            .stderr(Stdio::inherit());
        if let Some(gpu) = gpu {
            command.env("CUDA_VISIBLE_DEVICES", gpu);
        }
        command
    }
}

/// Writes lines to a handler from a task of its own: no one who watches the handler may wait for one that does not read.
fn write(mut stdin: ChildStdin) -> (mpsc::Sender<String>, AbortOnDropHandle<()>) {
    let (outgoing, mut lines) = mpsc::channel::<String>(OUTGOING_MAX);
    let writer = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            if let Err(error) = stdin.write_all(line.as_bytes()).await {
                tracing::debug!(%error, "a handler closed its standard input");
                return;
            }
        }
    });
    (outgoing, AbortOnDropHandle::new(writer))
}

async fn follow(stdout: ChildStdout, listener: Listener) {
    let mut lines = BufReader::new(stdout).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        listener(&String::from_utf8_lossy(&line));
    }
}

impl Process {
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends an order to the handler's standard input; returns at once. A handler that does not read it, or is gone, misses it.
    pub fn send(&self, order: &ControlCommand) {
        if let Some(outgoing) = &self.outgoing
            && let Err(error) = outgoing.try_send(order.encode())
        {
            tracing::warn!(%error, "an order to a handler was dropped: the handler does not read its standard input");
        }
    }

    /// Resolves when the process has ended; may be called again.
    pub async fn ended(&mut self) -> ExitStatus {
        match self.child.wait().await {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(%error, "a handler cannot be waited for; it is taken for dead");
                ExitStatus::default()
            }
        }
    }

    /// How many processes of this container the kernel has killed for memory since this one was started.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        oom_kills().saturating_sub(self.oom_kills_before)
    }

    /// Asks the process and its children to end.
    pub fn terminate(&self) {
        signal_group(&self.child, Signal::TERM);
    }

    /// Ends the process and its children.
    pub fn kill(&self) {
        signal_group(&self.child, Signal::KILL);
    }
}
