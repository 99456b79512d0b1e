//! How long the parts of a cold start took, up to the first image.

use std::time::{Duration, Instant};

use atelier_engine::loading::Loading;
use atelier_engine::{Engine, EngineError, Generated, QueuedRequest};

/// Ticks of the kernel's clock a second, as every x86-64 Linux reports them to programs.
const TICKS: f64 = 100.0;

/// What the engine's thread did before it could generate.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Phases {
    /// Opening it; on a GPU that makes its context.
    pub(super) device: Duration,
    pub(super) loading: Loading,
    pub(super) warm_up: Duration,
}

/// Milliseconds since this process was started, to a hundredth of a second; none where the kernel does not say.
pub(super) fn process_age_ms() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    age_ms(&stat, &uptime)
}

/// `stat`: field 22 is when the process was started, in ticks since the machine was; the name before it may hold anything.
fn age_ms(stat: &str, uptime: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let started: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(((now - started / TICKS).max(0.0) * 1e3).round() as u64)
}

/// Logs the first image, once.
pub(super) struct Announcing<E> {
    engine: E,
    is_first: bool,
}

impl<E> Announcing<E> {
    pub(super) fn new(engine: E) -> Self {
        Self { engine, is_first: true }
    }
}

impl<E: Engine> Engine for Announcing<E> {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        self.engine.warm_up()
    }

    fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        let began = Instant::now();
        let generated = self.engine.generate_together(queued_requests)?;
        if self.is_first && generated.iter().any(Result::is_ok) {
            self.is_first = false;
            let generate_ms = began.elapsed().as_millis() as u64;
            tracing::info!(generate_ms, first_image_ms = process_age_ms(), "first image");
        }
        Ok(generated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_as_old_as_the_kernel_says() {
        let stat = "7 (a (sp ace) 9) S 1 7 7 0 -1 4194560 100 0 0 0 3 1 0 0 20 0 5 0 123456 9000000 200 1844";
        assert_eq!(age_ms(stat, "1236.06 2000.00\n"), Some(1500));
        assert_eq!(age_ms(stat, "1000.00 2000.00\n"), Some(0), "another clock than it was started by");
        assert_eq!(age_ms("7 (atelier", "1.0"), None);
        assert!(process_age_ms().is_some_and(|age| age < 86_400_000), "of this very process");
    }
}
