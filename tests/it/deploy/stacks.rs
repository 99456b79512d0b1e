//! Both stacks: queue, redrive, mapping and permissions as moto made them; what moto does not make, as the template says it.

use serde_json::{Value, json};

use super::{function_stack, service_stack};

fn properties<'a>(stack: &'a Value, resource: &str) -> &'a Value {
    &stack["template"]["Resources"][resource]["Properties"]
}

/// A queue and its dead-letter queue, as they were made: how often a message is delivered, and its visibility in seconds.
fn redrive(stack: &Value) -> (u64, u64) {
    let jobs = &stack["queues"]["Jobs"];
    let dead = &stack["queues"]["DeadJobs"];
    let policy: Value = serde_json::from_str(jobs["RedrivePolicy"].as_str().unwrap()).unwrap();
    assert_eq!(policy["deadLetterTargetArn"], dead["QueueArn"]);
    assert_eq!((&jobs["SqsManagedSseEnabled"], &dead["SqsManagedSseEnabled"]), (&json!("true"), &json!("true")));
    // As large as jobs may be, and dead ones stay as long as SQS can keep them.
    assert_eq!((&jobs["MaximumMessageSize"], &dead["MessageRetentionPeriod"]), (&json!("1048576"), &json!("1209600")));
    (policy["maxReceiveCount"].as_u64().unwrap(), jobs["VisibilityTimeout"].as_str().unwrap().parse().unwrap())
}

/// Every action a role may do, as `action on resource`.
fn allowed(stack: &Value, role: &str) -> Vec<String> {
    let some = |value: &Value| match value {
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    };
    let mut allowed = Vec::new();
    for statement in stack["roles"][role].as_object().unwrap().values().flat_map(|policy| policy.as_array().unwrap()) {
        assert_eq!(statement["Effect"], "Allow");
        for (action, resource) in some(&statement["Action"])
            .iter()
            .flat_map(|action| some(&statement["Resource"]).into_iter().map(move |resource| (action.clone(), resource)))
        {
            allowed.push(format!("{action} on {resource}"));
        }
    }
    allowed.sort();
    allowed
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// As the template says it, because moto passes over a bucket's lifecycle: results go after the days that are asked for, halves of
/// uploads after one, and nothing else goes.
fn expect_lifecycle(stack: &Value) {
    let rules = properties(stack, "Results")["LifecycleConfiguration"]["Rules"].as_array().unwrap();
    let rule = |id: &str| rules.iter().find(|rule| rule["Id"] == id).unwrap_or_else(|| panic!("no rule {id}: {rules:?}"));
    assert_eq!(rules.len(), 2, "{rules:?}");
    assert!(rules.iter().all(|rule| rule["Status"] == "Enabled"), "{rules:?}");
    assert_eq!(rule("results")["ExpirationInDays"], json!({ "Ref": "ResultDays" }));
    assert_eq!(rule("uploads")["AbortIncompleteMultipartUpload"], json!({ "DaysAfterInitiation": 1 }));
    let days = &stack["template"]["Parameters"]["ResultDays"];
    assert_eq!((&days["Default"], &days["MinValue"]), (&json!(30), &json!(1)));
}

#[tokio::test]
async fn the_function_and_its_queue_are_created() {
    let Some(stack) = function_stack().await else { return };
    assert_eq!((&stack["status"], &stack["created"]), (&json!("CREATE_COMPLETE"), &json!(true)));
    // What moto does not make; all else was made by it.
    let expected = "Capacity DeadJobsAlarm ErrorsAlarm IdleAlarm InputPolicy InternalToken OldestJobAlarm ResultsPolicy RetriesAlarm \
                    SigningKey SigningPolicy SigningRandom StoreAlarm Url";
    let lacking: Vec<&str> = stack["lacking"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(lacking.join(" "), expected);

    let (deliveries, visibility) = redrive(&stack);
    let least = stack["template"]["Parameters"]["MaxAttempts"]["MinValue"].as_u64().unwrap();
    assert!(
        deliveries >= least && visibility * least >= 12 * 3600,
        "an outage of 12 hours: {least} deliveries of {visibility} s"
    );
    let function = &stack["function"];
    assert!(visibility >= 6 * function["Timeout"].as_u64().unwrap(), "AWS asks for six times the timeout");
    let variables = &function["Environment"]["Variables"];
    assert_eq!(
        variables["ATELIER__RUNTIME__MAX_ATTEMPTS"].to_string(),
        deliveries.to_string(),
        "the last attempt is known as such"
    );
    let [mapping] = stack["mappings"].as_array().unwrap().as_slice() else { panic!("{}", stack["mappings"]) };
    assert_eq!(mapping["EventSourceArn"], stack["queues"]["Jobs"]["QueueArn"]);
    assert_eq!(mapping["FunctionArn"], function["FunctionArn"]);
    assert_eq!((&mapping["BatchSize"], &mapping["FunctionResponseTypes"]), (&json!(1), &json!(["ReportBatchItemFailures"])));
    assert_eq!(mapping["ScalingConfig"]["MaximumConcurrency"], 3);
    let queue = stack["queues"]["Jobs"]["QueueArn"].as_str().unwrap();
    let bucket = format!("arn:aws:s3:::{}", stack["outputs"]["Bucket"].as_str().unwrap());
    let log =
        format!("arn:aws:logs:us-east-1:123456789012:log-group:{}:*", stack["resources"]["FunctionLog"].as_str().unwrap());
    let expected = vec![
        format!("sqs:ReceiveMessage on {queue}"),
        format!("sqs:DeleteMessage on {queue}"),
        format!("sqs:GetQueueAttributes on {queue}"),
        format!("s3:GetObject on {bucket}/*"),
        format!("s3:PutObject on {bucket}/*"),
        format!("s3:DeleteObject on {bucket}/*"),
        format!("s3:ListBucket on {bucket}"),
        format!("logs:CreateLogStream on {log}"),
        format!("logs:PutLogEvents on {log}"),
    ];
    assert_eq!(allowed(&stack, "FunctionRole"), sorted(expected));
    assert_eq!(stack["bucket"]["encryption"][0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"], "AES256");
    expect_lifecycle(&stack);
}

#[tokio::test]
async fn the_function_is_what_lambda_needs_for_a_gpu() {
    let Some(stack) = function_stack().await else { return };
    let function = properties(&stack, "Function");
    // https://docs.aws.amazon.com/lambda/latest/api/API_AcceleratorConfig.html: images and x86_64 only, and a capacity provider.
    assert_eq!((&function["PackageType"], &function["Architectures"]), (&json!("Image"), &json!(["x86_64"])));
    assert_eq!(function["AcceleratorConfig"], json!({ "AcceleratorMemorySize": { "Ref": "AcceleratorMemory" } }));
    let sizes = &stack["template"]["Parameters"]["AcceleratorMemory"]["AllowedValues"];
    assert_eq!(*sizes, json!([3, 6, 12, 16, 24, 48]));
    let provider = &function["CapacityProviderConfig"]["LambdaManagedInstancesCapacityProviderConfig"];
    assert_eq!(provider["CapacityProviderArn"], json!({ "Fn::GetAtt": ["Capacity", "Arn"] }));
    assert_eq!(provider["PerExecutionEnvironmentMaxConcurrency"], 1, "one job has the GPU");
    let most = &function["FunctionScalingConfig"]["MaxExecutionEnvironments"];
    assert_eq!(*most, properties(&stack, "JobsMapping")["ScalingConfig"]["MaximumConcurrency"]);
    assert_eq!(properties(&stack, "Url")["AuthType"], "AWS_IAM");
    let public = properties(&stack, "Results")["PublicAccessBlockConfiguration"].as_object().unwrap();
    assert!(public.len() == 4 && public.values().all(|blocked| *blocked == json!(true)), "{public:?}");
    for (name, resource) in stack["template"]["Resources"].as_object().unwrap() {
        if resource["Type"] == "AWS::IAM::Role" {
            let text = resource["Properties"]["Policies"].to_string();
            assert!(!text.contains("\"Resource\":\"*\"") && !text.contains("\"Action\":\"*\""), "{name}: {text}");
        }
    }
}

#[tokio::test]
async fn the_service_and_its_queue_are_created() {
    let Some(stack) = service_stack().await else { return };
    assert_eq!((&stack["status"], &stack["created"]), (&json!("CREATE_COMPLETE"), &json!(true)));
    expect_lifecycle(&stack);
    let (deliveries, _) = redrive(&stack);
    assert!(deliveries > 3, "SQS also counts what was put back untried: above runtime.max_attempts");
    let retention: u64 = stack["queues"]["Jobs"]["MessageRetentionPeriod"].as_str().unwrap().parse().unwrap();
    assert!(retention > 12 * 3600, "a message is kept until the host sends its copy");
    let queue = stack["queues"]["Jobs"]["QueueArn"].as_str().unwrap();
    let dead = stack["queues"]["DeadJobs"]["QueueArn"].as_str().unwrap();
    let bucket = format!("arn:aws:s3:::{}", stack["outputs"]["Bucket"].as_str().unwrap());
    let tasks = format!("arn:aws:ecs:us-east-1:123456789012:task/{}/*", stack["outputs"]["ClusterName"].as_str().unwrap());
    let expected = vec![
        format!("sqs:ReceiveMessage on {queue}"),
        format!("sqs:DeleteMessage on {queue}"),
        format!("sqs:ChangeMessageVisibility on {queue}"),
        format!("sqs:GetQueueAttributes on {queue}"),
        format!("sqs:SendMessage on {queue}"),
        format!("sqs:GetQueueUrl on {dead}"),
        format!("sqs:SendMessage on {dead}"),
        format!("s3:GetObject on {bucket}/*"),
        format!("s3:PutObject on {bucket}/*"),
        format!("s3:DeleteObject on {bucket}/*"),
        format!("s3:ListBucket on {bucket}"),
        format!("ecs:UpdateTaskProtection on {tasks}"),
    ];
    assert_eq!(allowed(&stack, "TaskRole"), sorted(expected));
    let container = &properties(&stack, "Task")["ContainerDefinitions"][0];
    let drain: u64 = container["Command"][2].as_str().unwrap().parse().unwrap();
    assert!(container["StopTimeout"].as_u64().unwrap() > drain, "ECS waits longer than the host drains");
    assert_eq!(container["ResourceRequirements"], json!([{ "Type": "GPU", "Value": "1" }]));
    let instance = properties(&stack, "InstanceTemplate")["LaunchTemplateData"]["UserData"].to_string();
    assert!(instance.contains("ECS_ENABLE_SPOT_INSTANCE_DRAINING=true"), "{instance}");
    let provider = &properties(&stack, "Capacity")["AutoScalingGroupProvider"];
    assert_eq!(
        (&provider["ManagedTerminationProtection"], &provider["ManagedDraining"]),
        (&json!("ENABLED"), &json!("ENABLED"))
    );
}
