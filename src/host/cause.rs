//! Why a handler process ended, as far as its host can see.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::protocol::ENGINE_LOST_EXIT_CODE;

/// Why a handler has to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It ended by itself although no one asked it to.
    Exit(i32),
    /// A signal that the host did not send: a segmentation fault, an abort, someone's kill -9.
    Signal(i32),
    /// The kernel killed it for memory.
    OutOfMemory,
    /// It said that its device is unusable ([`ENGINE_LOST_EXIT_CODE`]).
    FatalDevice,
    /// It did not answer before the deadline, and the host ended it.
    Deadline,
    /// It did not get ready in time, or said that it cannot.
    Init,
    /// It was asked to end.
    Stopped,
    /// It was asked to end, so that another model has the memory of its device.
    Unloaded,
}

impl Cause {
    /// `oom_kills`: how many processes of this container the kernel has killed for memory during the handler's life.
    #[must_use]
    pub fn of(status: ExitStatus, oom_kills: u64) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) if code == i32::from(ENGINE_LOST_EXIT_CODE) => Self::FatalDevice,
            (Some(code), _) => Self::Exit(code),
            (None, Some(KILL)) if oom_kills > 0 => Self::OutOfMemory,
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }

    /// One word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::Signal(_) => "signal",
            Self::OutOfMemory => "out_of_memory",
            Self::FatalDevice => "fatal_device",
            Self::Deadline => "deadline",
            Self::Init => "init",
            Self::Stopped => "stopped",
            Self::Unloaded => "unloaded",
        }
    }
}

const KILL: i32 = 9;

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "it ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
            Self::OutOfMemory => f.write_str("the kernel killed it for memory"),
            Self::FatalDevice => f.write_str("its device failed for good"),
            Self::Deadline => f.write_str("it did not answer before the deadline"),
            Self::Init => f.write_str("it did not get ready"),
            Self::Stopped => f.write_str("it was asked to end"),
            Self::Unloaded => f.write_str("it was asked to make room for another model"),
        }
    }
}

/// How many processes of this container the kernel has killed for memory so far; 0 where it does not say (cgroup v1).
#[must_use]
pub fn oom_kills() -> u64 {
    let events = std::fs::read_to_string("/sys/fs/cgroup/memory.events").unwrap_or_default();
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_causes() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(Cause::of(exited(1), 0), Cause::Exit(1));
        assert_eq!(Cause::of(exited(75), 0), Cause::FatalDevice);
        assert_eq!(Cause::of(ExitStatus::from_raw(11), 1), Cause::Signal(11));
        assert_eq!(Cause::of(ExitStatus::from_raw(9), 0), Cause::Signal(9));
        assert_eq!(Cause::of(ExitStatus::from_raw(9), 1), Cause::OutOfMemory);
    }
}
