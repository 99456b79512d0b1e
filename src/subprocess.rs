//! Processes that do not outlive this one, and that end with all that they have started.

use std::io;
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Starts processes from one thread that lives as long as this process: the kernel's parent-death signal (prctl(2),
/// `PR_SET_PDEATHSIG`) comes when the *thread* that started the process ends.
#[derive(Debug, Clone)]
pub struct Spawner {
    commands: mpsc::Sender<(Command, Handle, oneshot::Sender<io::Result<Child>>)>,
}

impl Spawner {
    /// `name`: of the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(name: &str) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel::<(Command, Handle, oneshot::Sender<io::Result<Child>>)>();
        thread::Builder::new().name(name.into()).spawn(move || {
            for (mut command, runtime, started) in inbox {
                let _runtime = runtime.enter();
                // The task that ordered it may be gone; then the dropped child is killed.
                let _ = started.send(command.spawn());
            }
        })?;
        Ok(Self { commands })
    }

    /// Starts a process in a group of its own, which is killed with this process, and when its handle is dropped.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let (sender, started) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.commands.send((command, Handle::current(), sender)).map_err(|_| gone())?;
        started.await.map_err(|_| gone())?
    }
}

fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    #[expect(unsafe_code, reason = "the only way to run code in the child between fork and exec")]
    // SAFETY: the closure makes two system calls and allocates nothing unless it fails, when the child ends at once.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
        });
    }
}

/// The id of a process that has not been waited for, which is also that of its group; else its id may be another's by now.
#[must_use]
pub fn id(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| Pid::from_raw(id.cast_signed()))
}

/// Sends a signal to a process and all that it has started.
pub fn signal_group(child: &Child, signal: Signal) {
    if let Some(group) = id(child)
        && let Err(error) = kill_process_group(group, signal)
    {
        tracing::debug!(%error, "a process could not be sent a signal");
    }
}
