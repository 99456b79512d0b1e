//! The built binary as a process of its own, under a Runtime API.

mod bad_input;
mod controlled;
mod controlnets;
mod crash;
mod demo;
mod hosts;
mod invoked;
mod invoker;
mod ip_adapters;
mod lifecycle;
mod oversized;
pub(crate) mod runtime_api;
mod segmenters;
mod upscalers;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A handler process; killed when dropped.
pub(crate) struct Process {
    child: Child,
}

/// Where a handler finds what it talks to.
pub(crate) struct World {
    pub(crate) runtime_api: SocketAddr,
    pub(crate) s3: SocketAddr,
    pub(crate) backend: SocketAddr,
}

impl World {
    /// The environment of a handler in this world, `changes` over it.
    pub(crate) fn environment(&self, changes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<String, String> = [
            ("AWS_LAMBDA_RUNTIME_API", self.runtime_api.to_string()),
            ("AWS_LAMBDA_FUNCTION_NAME", "atelier".to_owned()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096".to_owned()),
            ("ATELIER__STORE__BUCKET", atelier::demo::local::BUCKET.to_owned()),
            ("ATELIER__STORE__ENDPOINT_URL", format!("http://{}", self.s3)),
            ("ATELIER__STORE__FORCE_PATH_STYLE", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", atelier::demo::s3::ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", atelier::demo::s3::SECRET_ACCESS_KEY.to_owned()),
            ("AWS_S3_REGION_NAME", "us-east-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("BACKEND_API_URL", format!("http://{}", self.backend)),
            ("INTERNAL_API_TOKEN", crate::stage::TOKEN.to_owned()),
            // Most images of the tests are noise of a step or two, which is nobody's to judge.
            ("ATELIER__SAFETY__MODE", "off".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for (name, value) in changes {
            environment.insert((*name).to_owned(), (*value).to_owned());
        }
        environment.retain(|_, value| !value.is_empty());
        environment
    }

    /// Starts a handler; an empty value in `changes` takes a variable away. Its log goes to the file `log`, its standard
    /// output to the same with the ending `.out`.
    pub(crate) fn start(&self, changes: &[(&str, &str)], log: &Path) -> Process {
        self.spawn(changes, log, Stdio::null())
    }

    /// The same as `atelier host` does it, which speaks to its handlers.
    pub(crate) fn start_controlled(&self, changes: &[(&str, &str)], log: &Path) -> Process {
        self.spawn(&[changes, &[("ATELIER_CONTROL", "stdio")]].concat(), log, Stdio::piped())
    }

    fn spawn(&self, changes: &[(&str, &str)], log: &Path, stdin: Stdio) -> Process {
        let out = log.with_extension("out");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let out = std::fs::OpenOptions::new().create(true).append(true).open(out).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_atelier"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_clear()
            .envs(self.environment(changes))
            .stdin(stdin)
            .stdout(out)
            .stderr(log)
            .spawn()
            .unwrap();
        Process { child }
    }
}

impl Process {
    /// SIGKILL: no destructor, no goodbye.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    }

    /// Says a line to a controlled handler.
    pub(crate) fn order(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("a controlled handler"), "{line}").unwrap();
    }

    /// The host is gone, as far as the handler can see.
    pub(crate) fn hang_up(&mut self) {
        self.child.stdin.take().expect("a controlled handler");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the handler did not end within a minute");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
