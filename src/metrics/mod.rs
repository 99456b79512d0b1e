//! What is measured, for host and handler together, as Prometheus text.

pub mod emf;
pub mod gpu;
pub mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{CounterVec, Encoder as _, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

use self::gpu::Gpus;
use self::table::{Counter, Gauge, Histogram, Kind, Metric};
use crate::job::measured::{HeldResults, Measured, WebhookAttempts};
use crate::job::safety::Block;
use crate::job::user_step::UserStepRun;

/// The metrics of this process; clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    counters: BTreeMap<&'static str, CounterVec>,
    gauges: BTreeMap<&'static str, GaugeVec>,
    histograms: BTreeMap<&'static str, HistogramVec>,
    gpus: Gpus,
    latencies: Arc<Mutex<Latencies>>,
}

/// Of the infer steps of jobs that ended complete.
#[derive(Debug, Default)]
struct Latencies {
    count: u64,
    sum_ms: f64,
}

impl Latencies {
    /// The mean with one more.
    fn mean_with(&mut self, ms: f64) -> f64 {
        self.count += 1;
        self.sum_ms += ms;
        self.sum_ms / self.count as f64
    }
}

impl Metrics {
    /// Every row of the table, those without labels at 0.
    ///
    /// # Errors
    /// When two rows have one name, or one is none.
    pub fn new(gpus: Gpus) -> Result<Self, prometheus::Error> {
        let mut metrics = Self {
            registry: Registry::new(),
            counters: BTreeMap::new(),
            gauges: BTreeMap::new(),
            histograms: BTreeMap::new(),
            gpus,
            latencies: Arc::default(),
        };
        for row in table::TABLE {
            metrics.register(row)?;
        }
        metrics.set(table::BUILD, [env!("CARGO_PKG_VERSION")], 1.0);
        Ok(metrics)
    }

    fn register(&mut self, row: Metric) -> Result<(), prometheus::Error> {
        let Metric { name, kind, labels, meaning, .. } = row;
        match kind {
            Kind::Counter => {
                let counter = CounterVec::new(Opts::new(name, meaning), labels)?;
                self.registry.register(Box::new(counter.clone()))?;
                if labels.is_empty() {
                    // A value that is there from the start can be distinguished from one that never was.
                    counter.with_label_values::<&str>(&[]).inc_by(0.0);
                }
                self.counters.insert(name, counter);
            }
            Kind::Gauge => {
                let gauge = GaugeVec::new(Opts::new(name, meaning), labels)?;
                self.registry.register(Box::new(gauge.clone()))?;
                if labels.is_empty() {
                    gauge.with_label_values::<&str>(&[]).set(0.0);
                }
                self.gauges.insert(name, gauge);
            }
            Kind::Histogram(buckets) => {
                let options = HistogramOpts::new(name, meaning).buckets(buckets.to_vec());
                let histogram = HistogramVec::new(options, labels)?;
                self.registry.register(Box::new(histogram.clone()))?;
                self.histograms.insert(name, histogram);
            }
        }
        Ok(())
    }

    fn add<const N: usize>(&self, counter: Counter<N>, labels: [&str; N], amount: f64) {
        self.counters[counter.0.name].with_label_values(&labels).inc_by(amount);
    }

    fn set<const N: usize>(&self, gauge: Gauge<N>, labels: [&str; N], value: f64) {
        self.gauges[gauge.0.name].with_label_values(&labels).set(value);
    }

    fn remove<const N: usize>(&self, gauge: Gauge<N>, labels: [&str; N]) {
        // The error says that it was not there.
        let _ = self.gauges[gauge.0.name].remove_label_values(&labels);
    }

    fn forget<const N: usize>(&self, gauge: Gauge<N>) {
        self.gauges[gauge.0.name].reset();
    }

    fn observe<const N: usize>(&self, histogram: Histogram<N>, labels: [&str; N], value: f64) {
        self.histograms[histogram.0.name].with_label_values(&labels).observe(value);
    }

    /// One run of a job has ended. `outcome`: a word of the table's row.
    pub fn job(&self, source: &str, outcome: &str, measured: Option<&Measured>) {
        self.add(table::JOBS, [source, outcome], 1.0);
        if matches!(outcome, "failed" | "retry" | "dead_letter") {
            self.add(table::INFERENCE_ERRORS, [], 1.0);
        }
        let Some(measured) = measured else { return };
        self.observe(table::JOB_SECONDS, [source], measured.seconds);
        for (step, seconds) in &measured.step_seconds {
            self.observe(table::STEP_SECONDS, [step], *seconds);
        }
        if let Some(seconds) = measured.step_seconds.get("infer") {
            self.add(table::INFERENCES, [], 1.0);
            if outcome == "complete" {
                let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
                self.set(table::INFERENCE_LATENCY, [], latencies.mean_with(seconds * 1e3));
            }
        }
        self.add(table::DENOISING_STEPS, [], measured.denoising_steps as f64);
        if let Some(rate) = measured.steps_per_second() {
            self.set(table::STEPS_PER_SECOND, [], rate);
        }
        if let Some(hit) = measured.lora_cache_hit {
            self.add(table::LORA_CACHE, [if hit { "hit" } else { "miss" }], 1.0);
        }
        let HeldResults { kept, used, dropped } = measured.held_results;
        for (event, count) in [("kept", kept), ("used", used), ("dropped", dropped)] {
            self.add(table::HELD_RESULTS, [event], count as f64);
        }
        if let Some(Block { stage, category, .. }) = &measured.blocked {
            self.add(table::BLOCKED, [stage.as_str(), category], 1.0);
        }
        for UserStepRun { step, result } in &measured.user_steps {
            self.add(table::USER_STEPS, [step, result.as_str()], 1.0);
        }
        self.webhooks(&measured.webhook_attempts);
    }

    /// A result that had been on disk was gone.
    pub fn generated_again(&self) {
        self.add(table::HELD_RESULTS, ["generated_again"], 1.0);
    }

    /// A source is open: what alerts watch begins at 0, since an increase from nothing is none. `reasons`: of [`Self::deferred`].
    pub fn source_opened<'a>(&self, source: &str, reasons: impl IntoIterator<Item = &'a str>) {
        self.add(table::GIVEN_UP, [source], 0.0);
        for outcome in ["failed", "dead_letter"] {
            self.add(table::REFUSED, [source, outcome], 0.0);
        }
        for reason in reasons {
            self.add(table::DEFERRED, [source, reason], 0.0);
        }
    }

    /// A message waits. `reason`: a word of the table's row.
    pub fn deferred(&self, source: &str, reason: &str) {
        self.add(table::DEFERRED, [source, reason], 1.0);
    }

    pub fn store_available(&self, available: bool) {
        self.set(table::STORE_AVAILABLE, [], f64::from(u8::from(available)));
    }

    /// A message was refused. `outcome`: a word of the table's row.
    pub fn refused(&self, source: &str, outcome: &str) {
        self.add(table::REFUSED, [source, outcome], 1.0);
    }

    pub fn webhooks(&self, attempts: &[WebhookAttempts]) {
        for WebhookAttempts { kind, delivered, count } in attempts {
            self.add(table::WEBHOOKS, [kind, if *delivered { "delivered" } else { "failed" }], *count as f64);
        }
    }

    /// What waits to be sent. `open_breakers`: receivers that are left alone, each with how many it stands for.
    pub fn outbox(&self, waiting: usize, open_breakers: &[(String, usize)]) {
        self.set(table::NOTIFICATIONS_WAITING, [], waiting as f64);
        self.forget(table::BREAKERS_OPEN);
        for (receiver, count) in open_breakers {
            self.set(table::BREAKERS_OPEN, [receiver], *count as f64);
        }
    }

    /// A message was dead-lettered because its notifications were not taken.
    pub fn gave_up(&self, source: &str) {
        self.add(table::GIVEN_UP, [source], 1.0);
    }

    pub fn model_loaded(&self, model: &str, seconds: f64) {
        self.set(table::MODEL_LOAD, [model], seconds);
    }

    /// `cause`: a word of the table's row.
    pub fn handler_ended(&self, cause: &str) {
        self.add(table::RESTARTS, [cause], 1.0);
    }

    /// How many handlers are in each state, by its word in the table's row; of each model.
    pub fn handlers(&self, models: &[Vec<(&str, usize)>], in_hand: usize) {
        for (place, (state, _)) in models.first().into_iter().flatten().enumerate() {
            let count: usize = models.iter().map(|states| states[place].1).sum();
            self.set(table::HANDLERS, [state], count as f64);
        }
        self.set(table::IN_HAND, [], in_hand as f64);
    }

    /// How many of a model's handlers are in each state.
    pub fn model_handlers(&self, model: &str, states: &[(&str, usize)]) {
        for (state, count) in states {
            self.set(table::MODEL_HANDLERS, [model, state], *count as f64);
        }
        if states.iter().any(|(state, _)| *state == "unloaded") {
            // What alerts watch begins at 0.
            self.add(table::MODEL_SWAPS, [model], 0.0);
        }
        let resident: usize =
            states.iter().filter(|(state, _)| matches!(*state, "idle" | "busy")).map(|(_, count)| count).sum();
        self.set(table::MODEL_RESIDENT, [model], resident as f64);
    }

    /// A model was loaded in place of others. `took`: from when the first of them was asked to end.
    pub fn swapped(&self, model: &str, took: Duration) {
        self.add(table::MODEL_SWAPS, [model], 1.0);
        self.observe(table::SWAP_SECONDS, [model], took.as_secs_f64());
    }

    /// Jobs were given to a model's handler.
    pub fn started(&self, model: &str, jobs: usize) {
        self.add(table::MODEL_JOBS, [model], jobs as f64);
    }

    /// What waits in a queue. `oldest`: its age, where the queue reports one.
    pub fn queue(&self, source: &str, waiting: u64, oldest: Option<Duration>) {
        self.set(table::QUEUE_DEPTH, [source], waiting as f64);
        match oldest {
            Some(oldest) => self.set(table::QUEUE_AGE, [source], oldest.as_secs_f64()),
            None if waiting == 0 => self.set(table::QUEUE_AGE, [source], 0.0),
            None => self.remove(table::QUEUE_AGE, [source]),
        }
    }

    /// The queue cannot be asked: what it said last is not so any more.
    pub fn queue_unknown(&self, source: &str) {
        self.remove(table::QUEUE_DEPTH, [source]);
        self.remove(table::QUEUE_AGE, [source]);
    }

    /// A request was answered. `route`: the pattern that it matched.
    pub fn http_request(&self, route: &str, status: u16) {
        self.add(table::HTTP_REQUESTS, [route, &status.to_string()], 1.0);
    }

    /// The Prometheus text format, version 0.0.4. Waits for nothing.
    #[must_use]
    pub fn render(&self) -> String {
        // Next to the GPUs there are now, neither lost ones nor `none` may stay.
        self.forget(table::GPU_MEMORY);
        self.forget(table::GPU_UTILIZATION);
        for gpu in self.gpus.last() {
            self.set(table::GPU_MEMORY, [&gpu.name], gpu.memory_used_bytes as f64);
            self.set(table::GPU_UTILIZATION, [&gpu.name], f64::from(gpu.utilization_percent));
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::safety::Stage;
    use crate::job::user_step::UserStepResult;

    #[test]
    fn a_run_is_counted_where_the_table_says() {
        let metrics = Metrics::new(Gpus::none()).unwrap();
        let measured = Measured {
            seconds: 2.0,
            step_seconds: BTreeMap::from([("infer".to_owned(), 1.5)]),
            denoising_steps: 20,
            denoising_seconds: 1.9,
            lora_cache_hit: Some(true),
            held_results: HeldResults { kept: 1, used: 0, dropped: 2 },
            blocked: Some(Block { category: "nude".into(), stage: Stage::Image, field: None }),
            user_steps: vec![UserStepRun { step: "http:rules".into(), result: UserStepResult::Refused }],
            webhook_attempts: vec![WebhookAttempts { kind: "progress".into(), delivered: false, count: 3 }],
        };
        metrics.job("sqs", "complete", Some(&measured));
        metrics.job("sqs", "retry", None);
        metrics.refused("sqs", "dead_letter");
        let text = metrics.render();
        for line in [
            "atelier_jobs_total{outcome=\"complete\",source=\"sqs\"} 1",
            "atelier_blocked_total{category=\"nude\",stage=\"image\"} 1",
            "atelier_user_steps_total{result=\"refused\",step=\"http:rules\"} 1",
            "atelier_held_results_total{event=\"dropped\"} 2",
            "atelier_held_results_total{event=\"kept\"} 1",
            "atelier_jobs_total{outcome=\"retry\",source=\"sqs\"} 1",
            "atelier_denoising_steps_total 20",
            "atelier_denoising_steps_per_second 10",
            "atelier_lora_cache_total{result=\"hit\"} 1",
            "atelier_webhook_attempts_total{kind=\"progress\",result=\"failed\"} 3",
            "atelier_refused_total{outcome=\"dead_letter\",source=\"sqs\"} 1",
            "vton_inference_count 1",
            "vton_inference_errors_total 1",
            "vton_inference_latency_ms 1500",
            "atelier_step_seconds_bucket{step=\"infer\",le=\"2.5\"} 1",
            "gpu_memory_used_bytes{gpu=\"none\"} 0",
            "gpu_utilization_percent{gpu=\"none\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_latency_is_the_mean_of_successful_jobs() {
        let metrics = Metrics::new(Gpus::none()).unwrap();
        for (outcome, seconds) in [("complete", 1.0), ("retry", 60.0), ("complete", 2.0), ("failed", 60.0), ("complete", 6.0)] {
            let step_seconds = BTreeMap::from([("infer".to_owned(), seconds)]);
            metrics.clone().job("sqs", outcome, Some(&Measured { step_seconds, ..Measured::default() }));
        }
        let text = metrics.render();
        assert!(text.lines().any(|line| line == "vton_inference_latency_ms 3000"), "{text}");
    }
}
