//! CloudWatch's embedded metric format: on Lambda one line of log a run, from which CloudWatch makes metrics.
//!
//! See <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::table;
use crate::job::measured::Measured;

const NAMESPACE: &str = "atelier";

/// The line for one run of a job; `outcome` as in the table.
#[must_use]
pub fn line(model: &str, outcome: &str, job_id: &str, measured: &Measured) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut values = vec![
        (table::JOBS.0.name.to_owned(), "Count", 1.0),
        (table::JOB_SECONDS.0.name.to_owned(), "Seconds", measured.seconds),
        (table::DENOISING_STEPS.0.name.to_owned(), "Count", measured.denoising_steps as f64),
    ];
    if let Some(seconds) = measured.step_seconds.get("infer") {
        values.push((table::INFERENCE_LATENCY.0.name.to_owned(), "Milliseconds", seconds * 1e3));
    }
    for (step, seconds) in &measured.step_seconds {
        values.push((format!("{}_{step}", table::STEP_SECONDS.0.name), "Seconds", *seconds));
    }
    if let Some(rate) = measured.steps_per_second() {
        values.push((table::STEPS_PER_SECOND.0.name.to_owned(), "Count/Second", rate));
    }
    let metrics: Vec<Value> = values.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit })).collect();
    let directive = json!({ "Namespace": NAMESPACE, "Dimensions": [["model", "outcome"]], "Metrics": metrics });
    let mut line = Map::from_iter([
        ("_aws".to_owned(), json!({ "Timestamp": now.as_millis() as u64, "CloudWatchMetrics": [directive] })),
        ("model".to_owned(), model.into()),
        ("outcome".to_owned(), outcome.into()),
        ("job_id".to_owned(), job_id.into()),
        ("lora_cache_hit".to_owned(), json!(measured.lora_cache_hit)),
    ]);
    line.extend(values.into_iter().map(|(name, _, value)| (name, json!(value))));
    Value::Object(line).to_string()
}

/// The line for a message that was refused before it was run; `outcome` as in the table.
#[must_use]
pub fn refused(model: &str, outcome: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = table::REFUSED.0.name;
    let metric = json!({ "Name": name, "Unit": "Count" });
    let directive = json!({ "Namespace": NAMESPACE, "Dimensions": [["model", "outcome"]], "Metrics": [metric] });
    let announced = json!({ "Timestamp": now.as_millis() as u64, "CloudWatchMetrics": [directive] });
    json!({ "_aws": announced, "model": model, "outcome": outcome, name: 1 }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_that_is_announced_has_its_value() {
        let measured = Measured {
            seconds: 2.0,
            step_seconds: [("infer".to_owned(), 1.5), ("store".to_owned(), 0.1)].into(),
            denoising_steps: 20,
            denoising_seconds: 1.9,
            ..Measured::default()
        };
        let line: Value = serde_json::from_str(&line("tiny-sd", "complete", "job-1", &measured)).unwrap();
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "atelier");
        assert!(line["_aws"]["Timestamp"].as_u64().unwrap() > 1_700_000_000_000, "milliseconds since 1970");
        let metrics = directive["Metrics"].as_array().unwrap();
        assert_eq!(metrics.len(), 7);
        for metric in metrics {
            assert!(line[metric["Name"].as_str().unwrap()].is_number(), "{metric} has no value");
        }
        for dimension in directive["Dimensions"][0].as_array().unwrap() {
            assert!(line[dimension.as_str().unwrap()].is_string(), "{dimension} has no value");
        }
        assert_eq!(line["atelier_step_seconds_store"], 0.1);
    }
}
