//! Every metric there is: name, kind, unit, labels, meaning. The table of docs/metrics.md is printed from here.

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows, from the process's start.
    Counter,
    Gauge,
    /// Its buckets' upper bounds, in the metric's unit.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Empty: a number of things.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

/// From a replay to a long job.
const SECONDS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0];

/// What a metric is called. Its type knows how many labels a value needs: one with more or fewer does not compile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled<const N: usize> {
    pub name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str; N],
    meaning: &'static str,
}

/// Only grows, from the process's start.
#[derive(Debug, Clone, Copy)]
pub struct Counter<const N: usize>(pub Labelled<N>);

/// Has the value that was set last.
#[derive(Debug, Clone, Copy)]
pub struct Gauge<const N: usize>(pub Labelled<N>);

/// Counts values by how large they are.
#[derive(Debug, Clone, Copy)]
pub struct Histogram<const N: usize>(pub Labelled<N>, &'static [f64]);

impl<const N: usize> Labelled<N> {
    const fn row(self, kind: Kind) -> Metric {
        Metric { name: self.name, kind, unit: self.unit, labels: self.labels, meaning: self.meaning }
    }
}

impl<const N: usize> Counter<N> {
    const fn row(self) -> Metric {
        self.0.row(Kind::Counter)
    }
}

impl<const N: usize> Gauge<N> {
    const fn row(self) -> Metric {
        self.0.row(Kind::Gauge)
    }
}

impl<const N: usize> Histogram<N> {
    const fn row(self) -> Metric {
        self.0.row(Kind::Histogram(self.1))
    }
}

const fn labelled<const N: usize>(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str; N],
    meaning: &'static str,
) -> Labelled<N> {
    Labelled { name, unit, labels, meaning }
}

// The names of the try-on service that this replaces.
pub const INFERENCES: Counter<0> =
    Counter(labelled("vton_inference_count", "", &[], "jobs that were generated, try-on and generate alike"));
pub const INFERENCE_LATENCY: Gauge<0> = Gauge(labelled(
    "vton_inference_latency_ms",
    "ms",
    &[],
    "the infer step of jobs that ended complete: their mean since the start",
));
pub const INFERENCE_ERRORS: Counter<0> =
    Counter(labelled("vton_inference_errors_total", "", &[], "runs that did not end in images"));
pub const GPU_MEMORY: Gauge<1> =
    Gauge(labelled("gpu_memory_used_bytes", "bytes", &["gpu"], "by NVML; 0 with gpu=\"none\" where there is none"));
pub const GPU_UTILIZATION: Gauge<1> =
    Gauge(labelled("gpu_utilization_percent", "percent", &["gpu"], "by NVML; 0 with gpu=\"none\" where there is none"));

pub const JOBS: Counter<2> = Counter(labelled(
    "atelier_jobs_total",
    "",
    &["source", "outcome"],
    "runs by outcome: complete, failed, retry, store_unavailable, moderation_unavailable, step_unavailable, dead_letter, untried (handed back without an attempt), cancelled (before a run)",
));
pub const REFUSED: Counter<2> = Counter(labelled(
    "atelier_refused_total",
    "",
    &["source", "outcome"],
    "messages that no attempt can help: failed (its sender was notified) or dead_letter (no one could be notified, or `keep_refused`)",
));
pub const BLOCKED: Counter<2> = Counter(labelled(
    "atelier_blocked_total",
    "",
    &["stage", "category"],
    "runs that the safety gate ended: by what was looked at (prompt, input, image), and as what",
));
pub const USER_STEPS: Counter<2> = Counter(labelled(
    "atelier_user_steps_total",
    "",
    &["step", "result"],
    "runs of the steps of your own: ok, refused (the job has ended), failed (no answer that can be used), unavailable (the job waits)",
));
pub const HELD_RESULTS: Counter<1> = Counter(labelled(
    "atelier_held_results_total",
    "",
    &["event"],
    "results on the host's disk until the store has them: kept, used (stored by a later attempt), dropped (no room), generated_again (lost)",
));
pub const DEFERRED: Counter<2> = Counter(labelled(
    "atelier_deferred_total",
    "",
    &["source", "reason"],
    "messages that wait and count no attempt: running, model_busy, store_unavailable, moderation_unavailable, step_unavailable, result_held, notification_undelivered, end_unknown",
));
pub const STORE_AVAILABLE: Gauge<0> = Gauge(labelled(
    "atelier_store_available",
    "",
    &[],
    "1 while the store can be used, 0 while nothing is received because it cannot",
));
pub const JOB_SECONDS: Histogram<1> = Histogram(
    labelled("atelier_job_seconds", "seconds", &["source"], "a run in the handler, from its turn to its outcome"),
    SECONDS,
);
pub const STEP_SECONDS: Histogram<1> = Histogram(
    labelled("atelier_step_seconds", "seconds", &["step"], "a workflow step of a run; a replay has `notify` alone"),
    SECONDS,
);
pub const DENOISING_STEPS: Counter<0> = Counter(labelled("atelier_denoising_steps_total", "", &[], "denoising steps done"));
pub const STEPS_PER_SECOND: Gauge<0> =
    Gauge(labelled("atelier_denoising_steps_per_second", "steps/s", &[], "of the last generated job"));
pub const LORA_CACHE: Counter<1> = Counter(labelled(
    "atelier_lora_cache_total",
    "",
    &["result"],
    "jobs with LoRAs: hit when they were those of the job before, miss when they were merged anew",
));
pub const WEBHOOKS: Counter<2> = Counter(labelled(
    "atelier_webhook_attempts_total",
    "",
    &["kind", "result"],
    "attempts to deliver a notification, by its kind; delivered or failed",
));
pub const NOTIFICATIONS_WAITING: Gauge<0> = Gauge(labelled(
    "atelier_notifications_waiting",
    "",
    &[],
    "jobs that have ended and wait in this host until their notifications are taken",
));
pub const BREAKERS_OPEN: Gauge<1> = Gauge(labelled(
    "atelier_webhook_breakers_open",
    "",
    &["receiver"],
    "receivers (host name and port) that are left alone because they failed over and over: 20 by name, all more as `other`",
));
pub const GIVEN_UP: Counter<1> = Counter(labelled(
    "atelier_notifications_given_up_total",
    "",
    &["source"],
    "messages dead-lettered as `webhook_failed`: their notifications were not taken for `notify.give_up_after_hours`",
));
pub const MODEL_LOAD: Gauge<1> =
    Gauge(labelled("atelier_model_load_seconds", "seconds", &["model"], "from a handler's start to ready, the last time"));
pub const RESTARTS: Counter<1> = Counter(labelled(
    "atelier_handler_restarts_total",
    "",
    &["cause"],
    "handlers that ended: exit, signal, out_of_memory, fatal_device, deadline, init",
));
pub const HANDLERS: Gauge<1> = Gauge(labelled(
    "atelier_handlers",
    "",
    &["state"],
    "handlers by state: starting, idle, busy, down; where models share a device also unloaded and unloading",
));
pub const MODEL_HANDLERS: Gauge<2> =
    Gauge(labelled("atelier_model_handlers", "", &["model", "state"], "the same by the model that they serve"));
pub const MODEL_RESIDENT: Gauge<1> = Gauge(labelled(
    "atelier_model_resident",
    "",
    &["model"],
    "handlers that have the model in memory and are ready: 0 while another model has its device",
));
pub const MODEL_SWAPS: Counter<1> = Counter(labelled(
    "atelier_model_swaps_total",
    "",
    &["model"],
    "times the model was loaded in place of others that share its device",
));
pub const SWAP_SECONDS: Histogram<1> = Histogram(
    labelled(
        "atelier_model_swap_seconds",
        "seconds",
        &["model"],
        "such a swap, from when others are asked to make room to when the model is ready",
    ),
    SECONDS,
);
pub const MODEL_JOBS: Counter<1> = Counter(labelled(
    "atelier_model_jobs_total",
    "",
    &["model"],
    "jobs that handlers were given, by the model that they serve",
));
pub const IN_HAND: Gauge<0> =
    Gauge(labelled("atelier_jobs_in_flight", "", &[], "jobs taken from queues that wait for a handler"));
pub const QUEUE_DEPTH: Gauge<1> = Gauge(labelled("atelier_queue_depth", "", &["source"], "messages that wait in the queue"));
pub const QUEUE_AGE: Gauge<1> = Gauge(labelled(
    "atelier_queue_oldest_seconds",
    "seconds",
    &["source"],
    "age of the oldest waiting message, where the queue reports it (the spool)",
));
pub const HTTP_REQUESTS: Counter<2> = Counter(labelled(
    "atelier_http_requests_total",
    "",
    &["route", "status"],
    "answered requests, by the route's pattern (other: none) and the status of the answer",
));
pub const BUILD: Gauge<1> = Gauge(labelled("atelier_build_info", "", &["version"], "1"));

/// All of them, in the order of docs/metrics.md.
pub const TABLE: [Metric; 34] = [
    INFERENCES.row(),
    INFERENCE_LATENCY.row(),
    INFERENCE_ERRORS.row(),
    GPU_MEMORY.row(),
    GPU_UTILIZATION.row(),
    JOBS.row(),
    REFUSED.row(),
    BLOCKED.row(),
    USER_STEPS.row(),
    HELD_RESULTS.row(),
    DEFERRED.row(),
    STORE_AVAILABLE.row(),
    JOB_SECONDS.row(),
    STEP_SECONDS.row(),
    DENOISING_STEPS.row(),
    STEPS_PER_SECOND.row(),
    LORA_CACHE.row(),
    WEBHOOKS.row(),
    NOTIFICATIONS_WAITING.row(),
    BREAKERS_OPEN.row(),
    GIVEN_UP.row(),
    MODEL_LOAD.row(),
    RESTARTS.row(),
    HANDLERS.row(),
    MODEL_HANDLERS.row(),
    MODEL_RESIDENT.row(),
    MODEL_SWAPS.row(),
    SWAP_SECONDS.row(),
    MODEL_JOBS.row(),
    IN_HAND.row(),
    QUEUE_DEPTH.row(),
    QUEUE_AGE.row(),
    HTTP_REQUESTS.row(),
    BUILD.row(),
];

/// The table in Markdown.
#[must_use]
pub fn markdown() -> String {
    let head = "| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
    let rows = TABLE.iter().map(|Metric { name, kind, unit, labels, meaning }| {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {kind} | {unit} | {} | {meaning} |\n", labels.join(" "))
    });
    [head].into_iter().chain(rows).collect()
}
