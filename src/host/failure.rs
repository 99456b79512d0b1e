//! A part of the host that ends although nobody asked the host to: what is left would take jobs that no one works on.

use tokio::task::JoinSet;

/// Why a host ended that nobody had asked to.
#[derive(Debug, thiserror::Error)]
#[error("{part} of the host ended although nobody asked it to ({problem}); this is a bug of atelier: start the host again")]
pub struct HostFailure {
    part: &'static str,
    problem: String,
}

/// Resolves when one of the tasks ends; never, where there is none.
pub(super) async fn first_end(part: &'static str, tasks: &mut JoinSet<()>) -> HostFailure {
    match tasks.join_next().await {
        Some(Ok(())) => HostFailure { part, problem: "it had nothing more to do".to_owned() },
        Some(Err(panic)) => HostFailure { part, problem: panic.to_string() },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_is_named_with_its_panic() {
        let mut tasks = JoinSet::new();
        let nothing = tokio::time::timeout(Duration::from_millis(10), first_end("an intake", &mut tasks)).await;
        assert!(nothing.is_err(), "a host without such tasks lives on");
        tasks.spawn(std::future::pending());
        tasks.spawn(async { panic!("no way to write a line") });
        let text = first_end("a worker", &mut tasks).await.to_string();
        assert!(text.starts_with("a worker of the host ended although nobody asked it to"), "{text}");
        assert!(text.contains("no way to write a line"), "{text}");
    }
}
