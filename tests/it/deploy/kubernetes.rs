//! The Kubernetes files keep what long jobs need: graces in order, probes that exist, one scaler that is the same for both queues.

use super::file;

/// The number behind a key's first place in a text.
fn number(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let digits: String = rest.trim_start_matches([':', ' ', '"', '[', ',']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number behind {key}"))
}

#[test]
fn a_pod_has_time_to_drain() {
    let deployment = file("deploy/k8s/deployment.yaml");
    let drain = number(&deployment, "--drain-seconds");
    assert_eq!(drain, number(&file("config.yaml"), "drain_seconds"), "as config.yaml says");
    let pause = number(&deployment, "sleep: { seconds");
    // The pause before SIGTERM counts, and the last answers take 5 s.
    assert!(number(&deployment, "terminationGracePeriodSeconds") >= drain + pause + 10);
    for probe in
        ["readinessProbe:\n            httpGet: { path: /test,", "livenessProbe:\n            httpGet: { path: /health,"]
    {
        assert!(deployment.contains(probe), "{probe}");
    }
}

#[test]
fn both_scalers_count_jobs_that_run() {
    let sqs = file("deploy/k8s/sqs.yaml");
    let rabbitmq = file("deploy/k8s/rabbitmq.yaml");
    assert!(sqs.contains("scaleOnInFlight: \"true\"") && rabbitmq.contains("excludeUnacknowledged: \"false\""));
    for key in ["pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount"] {
        assert_eq!(number(&sqs, key), number(&rabbitmq, key), "{key}");
    }
    assert!(rabbitmq.contains("queueName: image_generation"));
}
