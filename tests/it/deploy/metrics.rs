//! Dashboards and alarms name metrics that exist, with labels that exist.

use std::collections::BTreeSet;

use atelier::metrics::table::{Kind, TABLE};
use serde_json::Value;

use super::file;

/// Words of a text that are names of ours.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|delivery_request: char| !delivery_request.is_ascii_alphanumeric() && delivery_request != '_');
    let ours = words.filter(|word| ["atelier_", "vton_", "gpu_"].iter().any(|prefix| word.starts_with(prefix)));
    ours.map(ToOwned::to_owned).collect()
}

/// Is it a series that `/metrics` has?
fn is_series(name: &str) -> bool {
    TABLE.iter().any(|row| match row.kind {
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(row.name)),
        _ => row.name == name,
    })
}

/// Is it a metric that CloudWatch has from the embedded format? A step's seconds carry its name at their end.
fn is_embedded(name: &str) -> bool {
    TABLE.iter().any(|row| row.name == name || name.strip_prefix(&format!("{}_", row.name)) == Some("infer"))
}

#[test]
fn the_grafana_dashboard_names_series_that_exist() {
    let dashboard: Value = serde_json::from_str(&file("deploy/monitoring/grafana/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} asks for nothing", panel["title"]);
        queries.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    let names = named(&queries.join(" "));
    for name in &names {
        assert!(is_series(name), "{name} is no series of /metrics");
    }
    assert!(names.len() >= 12, "only {names:?}");
    let known: BTreeSet<&str> = TABLE.iter().flat_map(|row| row.labels).copied().chain(["le"]).collect();
    for query in &queries {
        for group in query.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            for label in group.split(", ") {
                assert!(known.contains(label), "{label} is no label: {query}");
            }
        }
    }
}

/// The Prometheus operator reads another document than Prometheus.
#[test]
fn the_operators_rules_are_those_of_prometheus() {
    let rules: Value = serde_saphyr::from_str(&file("deploy/monitoring/rules.yaml")).unwrap();
    let operator = file("deploy/monitoring/operator.yaml");
    let documents = operator.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    let of_operator: Vec<Value> = documents.filter(|document| document["kind"] == "PrometheusRule").collect();
    assert_eq!(of_operator.len(), 1);
    assert_eq!(of_operator[0]["spec"]["groups"], rules["groups"]);
    assert!(rules["groups"][0]["rules"].as_array().unwrap().len() >= 8);
}

#[test]
fn alarms_name_metrics_that_exist() {
    for rules in ["deploy/monitoring/rules.yaml", "deploy/k8s/rabbitmq.yaml"] {
        let text = file(rules);
        let queries =
            text.lines().filter_map(|line| line.trim().strip_prefix("expr: ").or(line.trim().strip_prefix("query: ")));
        for name in queries.flat_map(named) {
            assert!(is_series(&name), "{rules}: {name} is no series of /metrics");
        }
    }
    let template = file("template.yaml");
    let metrics: BTreeSet<String> = named(&template).into_iter().collect();
    assert!(metrics.contains("atelier_jobs_total"), "{metrics:?}");
    for name in metrics {
        assert!(is_embedded(&name), "template.yaml: {name} is no metric of the function");
    }
}
