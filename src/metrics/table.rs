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
const fn row(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, meaning }
}

// The names of the try-on service that this replaces.
pub const INFERENCES: Metric =
    row("vton_inference_count", Kind::Counter, "", &[], "jobs that were generated, try-on and generate alike");
pub const INFERENCE_LATENCY: Metric =
    row("vton_inference_latency_ms", Kind::Gauge, "ms", &[], "the infer step of the last generated job");
pub const INFERENCE_ERRORS: Metric =
    row("vton_inference_errors_total", Kind::Counter, "", &[], "runs that did not end in images");
pub const GPU_MEMORY: Metric =
    row("gpu_memory_used_bytes", Kind::Gauge, "bytes", &["gpu"], "by NVML; 0 with gpu=\"none\" where there is none");
pub const GPU_UTILIZATION: Metric =
    row("gpu_utilization_percent", Kind::Gauge, "percent", &["gpu"], "by NVML; 0 with gpu=\"none\" where there is none");

pub const JOBS: Metric = row(
    "atelier_jobs_total",
    Kind::Counter,
    "",
    &["source", "outcome"],
    "runs by outcome: complete, failed, retry, dead_letter, untried (handed back without an attempt), cancelled (before a run)",
);
pub const JOB_SECONDS: Metric = row(
    "atelier_job_seconds",
    Kind::Histogram(SECONDS),
    "seconds",
    &["source"],
    "a run in the handler, from its turn to its outcome",
);
pub const STEP_SECONDS: Metric = row(
    "atelier_step_seconds",
    Kind::Histogram(SECONDS),
    "seconds",
    &["step"],
    "a workflow step of a run; a replay has `notify` alone",
);
pub const DENOISING_STEPS: Metric = row("atelier_denoising_steps_total", Kind::Counter, "", &[], "denoising steps done");
pub const STEPS_PER_SECOND: Metric =
    row("atelier_denoising_steps_per_second", Kind::Gauge, "steps/s", &[], "of the last generated job");
pub const LORA_CACHE: Metric = row(
    "atelier_lora_cache_total",
    Kind::Counter,
    "",
    &["result"],
    "jobs with LoRAs: hit when they were those of the job before, miss when they were merged anew",
);
pub const WEBHOOKS: Metric = row(
    "atelier_webhook_attempts_total",
    Kind::Counter,
    "",
    &["kind", "result"],
    "attempts to deliver a notification, by its kind; delivered or failed",
);
pub const MODEL_LOAD: Metric =
    row("atelier_model_load_seconds", Kind::Gauge, "seconds", &["model"], "from a handler's start to ready, the last time");
pub const RESTARTS: Metric = row(
    "atelier_handler_restarts_total",
    Kind::Counter,
    "",
    &["cause"],
    "handlers that ended: exit, signal, out_of_memory, fatal_device, deadline, init",
);
pub const HANDLERS: Metric =
    row("atelier_handlers", Kind::Gauge, "", &["state"], "handlers by state: starting, idle, busy, down");
pub const IN_HAND: Metric =
    row("atelier_jobs_in_flight", Kind::Gauge, "", &[], "jobs taken from queues that wait for a handler");
pub const QUEUE_DEPTH: Metric = row("atelier_queue_depth", Kind::Gauge, "", &["source"], "messages that wait in the queue");
pub const QUEUE_AGE: Metric = row(
    "atelier_queue_oldest_seconds",
    Kind::Gauge,
    "seconds",
    &["source"],
    "age of the oldest waiting message, where the queue tells (the spool)",
);
pub const HTTP_REQUESTS: Metric = row(
    "atelier_http_requests_total",
    Kind::Counter,
    "",
    &["route", "status"],
    "answered requests, by the route's pattern (other: none) and the status of the answer",
);
pub const BUILD: Metric = row("atelier_build_info", Kind::Gauge, "", &["version"], "1");

/// All of them, in the order of docs/metrics.md.
pub const TABLE: [Metric; 20] = [
    INFERENCES,
    INFERENCE_LATENCY,
    INFERENCE_ERRORS,
    GPU_MEMORY,
    GPU_UTILIZATION,
    JOBS,
    JOB_SECONDS,
    STEP_SECONDS,
    DENOISING_STEPS,
    STEPS_PER_SECOND,
    LORA_CACHE,
    WEBHOOKS,
    MODEL_LOAD,
    RESTARTS,
    HANDLERS,
    IN_HAND,
    QUEUE_DEPTH,
    QUEUE_AGE,
    HTTP_REQUESTS,
    BUILD,
];

/// The table in Markdown.
#[must_use]
pub fn markdown() -> String {
    let line = |Metric { name, kind, unit, labels, meaning }: &Metric| {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {kind} | {unit} | {} | {meaning} |\n", labels.join(" "))
    };
    let head = "| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
    [head].into_iter().chain(TABLE.iter().map(line)).collect()
}
