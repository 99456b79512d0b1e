//! Models that take turns at the memory of one device: who is loaded when, whatever dies or is asked to end meanwhile.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use atelier::host::dispatch::{Dispatcher, HandlerPlace, Next};
use atelier::host::sharing::{Settings, Share};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use reqwest::{Client, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bench::in_flight;
use super::models::{complete, edit, handler, start_with};
use super::shelf::Shelf;
use super::{HostProcess, eventually, is_alive, job, signal};
use crate::servers::rabbitmq;
use crate::stage::TOKEN;

/// Room for one of them.
const BOTH: &str = "[{name: tiny-sd, memory_mib: 1000}, {name: tiny-edit, memory_mib: 1000}]";

async fn sharing(models: &str, sharing: &str, changes: &[(&str, &str)]) -> HostProcess {
    let own = [("ATELIER__HOST__MODELS", models), ("ATELIER__HOST__SHARING", sharing)];
    start_with(&[&own, changes].concat()).await
}

/// A host with room for one of two models, and these jobs in its spool when it starts.
async fn over_spool(settings: &str, jobs: &[(&str, Value)]) -> HostProcess {
    let mut host = sharing(BOTH, settings, &[]).await;
    host.kill();
    for (id, body) in jobs {
        host.spool(id, body);
    }
    host.restart();
    host
}

async fn swaps(host: &HostProcess) -> [u64; 2] {
    let of = async |model| host.metric(&format!("atelier_model_swaps_total{{model=\"{model}\"}}")).await.unwrap() as u64;
    [of("tiny-sd").await, of("tiny-edit").await]
}

async fn states(host: &HostProcess) -> (Value, Vec<Value>) {
    let test: Value = serde_json::from_str(&host.get("/test").await).unwrap();
    let states = test["models"].as_array().unwrap().iter().map(|model| model["status"].clone()).collect();
    (test["status"].clone(), states)
}

fn ids(host: &HostProcess) -> Vec<String> {
    host.backend.accepted().iter().map(|told| told.body["job_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn jobs_of_the_loaded_model_go_first_and_a_swap_leaves_images_as_they_are() {
    let jobs = ["text-1", "text-2", "text-3"].map(|id| (id, job(id)));
    let [first, second, third] = jobs;
    let mixed = [first, ("edit-1", edit("edit-1")), second, ("edit-2", edit("edit-2")), third];
    let mut host = over_spool("{memory_mib: 1500}", &mixed).await;
    let texts = [("text-1", "tiny-sd"), ("text-2", "tiny-sd"), ("text-3", "tiny-sd")];
    complete(&mut host, texts.to_vec()).await;
    complete(&mut host, vec![("edit-1", "tiny-edit"), ("edit-2", "tiny-edit")]).await;
    assert_eq!(swaps(&host).await, [0, 1], "{}", host.log());
    host.expect_metric("atelier_model_resident{model=\"tiny-edit\"}", 1.0).await;
    host.expect_metric("atelier_model_handlers{model=\"tiny-sd\",state=\"unloaded\"}", 1.0).await;
    assert_eq!(states(&host).await, (json!("hot"), vec![json!("unloaded"), json!("hot")]));
    // One whose caller waits is answered by a model that is loaded for it.
    let client = Client::builder().no_proxy().build().unwrap();
    let infer = client.post(format!("http://{}/infer", host.address())).header("x-internal-auth", TOKEN);
    let answer = infer.json(&job("now")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let again = image::load_from_memory(&answer.bytes().await.unwrap()).unwrap();
    assert!(again == image::open(host.bucket.image("text-1", 0)).unwrap(), "its pixels are those from before the swap");
    assert_eq!(swaps(&host).await, [1, 1]);
    assert_eq!(host.metric("atelier_model_swap_seconds_count{model=\"tiny-sd\"}").await, Some(1.0));
    // What the model said that is not there now is known.
    let mut unknown_mode = edit("unknown");
    unknown_mode["mode"] = json!("base");
    let door = client.post(format!("http://{}/edit", host.address())).header("x-internal-auth", TOKEN);
    let refused = door.json(&unknown_mode).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let unloaded = host.logged("a model is unloaded to make room for another");
    let said: Vec<_> = unloaded.iter().map(|line| (&line["model"], &line["wanted"])).collect();
    assert_eq!(said, [(&json!("tiny-sd"), &json!("tiny-edit")), (&json!("tiny-edit"), &json!("tiny-sd"))]);
    host.backend.terminal().await;
    let mut told = ids(&host);
    told.sort();
    assert_eq!(told, ["edit-1", "edit-2", "now", "text-1", "text-2", "text-3"], "each has one end");
    assert_eq!(host.metric("atelier_jobs_total{outcome=\"untried\",source=\"spool\"}").await, None);
}

#[tokio::test]
async fn a_job_that_has_waited_for_long_enough_comes_before_those_of_the_loaded_model() {
    let mut jobs = vec![("text-0", job("text-0")), ("edit", edit("edit"))];
    jobs.extend(["text-1", "text-2", "text-3"].map(|id| (id, job(id))));
    let mut host = over_spool("{memory_mib: 1500, max_swap_wait_ms: 0, lookahead: 8}", &jobs).await;
    for next in [("text-0", "tiny-sd"), ("edit", "tiny-edit")] {
        complete(&mut host, vec![next]).await;
    }
    complete(&mut host, ["text-1", "text-2", "text-3"].map(|id| (id, "tiny-sd")).to_vec()).await;
    assert_eq!(swaps(&host).await, [1, 1]);
}

/// The bundled models, and one of them under another name.
fn three_models() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    for entry in std::fs::read_dir(&bundled).unwrap() {
        let path = entry.unwrap().path();
        symlink(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    let manifest = std::fs::read_to_string(bundled.join("tiny-sd.yaml")).unwrap();
    std::fs::write(directory.path().join("other.yaml"), manifest.replace("model: tiny-sd", "model: other")).unwrap();
    directory
}

#[tokio::test]
async fn of_three_models_with_room_for_two_the_least_recently_used_one_goes() {
    let directory = three_models();
    let directory = directory.path().display().to_string();
    let models = "[{name: tiny-sd, memory_mib: 500}, {name: other, memory_mib: 500}, {name: tiny-edit, memory_mib: 500}]";
    let mut host = sharing(models, "{memory_mib: 1000}", &[("ATELIER__MODEL__DIRECTORY", &directory)]).await;
    host.wait_for("a handler is ready", 2).await;
    let mut other = job("other");
    other["model"] = json!("other");
    let mut again = other.clone();
    again["job_id"] = json!("again");
    let jobs = [("other", "other"), ("text", "tiny-sd"), ("edit", "tiny-edit"), ("again", "other")];
    for ((id, model), body) in jobs.into_iter().zip([other, job("text"), edit("edit"), again]) {
        let path = if model == "tiny-edit" { "/edit" } else { "/generate" };
        host.post(path, &body).await;
        complete(&mut host, vec![(id, model)]).await;
    }
    let unloaded = host.logged("a model is unloaded to make room for another");
    let said: Vec<_> =
        unloaded.iter().map(|line| (line["model"].as_str().unwrap(), line["wanted"].as_str().unwrap())).collect();
    assert_eq!(said, [("other", "tiny-edit"), ("tiny-sd", "other")]);
    assert_eq!(states(&host).await, (json!("hot"), vec![json!("unloaded"), json!("hot"), json!("hot")]));
}

/// A handler that was told to end has its memory until it has ended.
#[tokio::test]
async fn a_model_is_loaded_only_when_the_process_before_it_is_gone_and_a_host_may_end_meanwhile() {
    let mut host = sharing(BOTH, "{memory_mib: 1500}", &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let texts = handler(&host, 0);
    signal(Signal::STOP, texts);
    host.post("/edit", &edit("edit-1")).await;
    host.wait_for("a model is unloaded to make room for another", 1).await;
    assert_eq!(states(&host).await, (json!("hot"), vec![json!("unloaded"), json!("loading")]));
    host.wait_for("a handler was started", 2).await;
    assert!(!is_alive(texts), "both would have the memory");
    complete(&mut host, vec![("edit-1", "tiny-edit")]).await;
    signal(Signal::STOP, handler(&host, 1));
    host.post("/generate", &job("text-1")).await;
    host.wait_for("a model is unloaded to make room for another", 2).await;
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    assert_eq!(host.spooled("waiting").len(), 1, "its job waits for the next host");
    assert_eq!(host.handlers().len(), 2, "nothing is loaded any more");
    for handler in host.handlers() {
        assert!(!is_alive(handler), "{handler} outlived its host");
    }
    host.restart();
    complete(&mut host, vec![("text-1", "tiny-sd")]).await;
    assert_eq!(ids(&host), ["edit-1", "text-1"]);
}

#[tokio::test]
async fn a_caller_who_waits_for_a_swap_can_look_and_cancel() {
    let mut host = sharing(BOTH, "{memory_mib: 1500}", &[]).await;
    host.wait_for("a handler is ready", 1).await;
    // Should it be loaded sooner than that, the handler cancels it before its end.
    host.bucket.hold(Some("/0.png"));
    let client = Client::builder().no_proxy().build().unwrap();
    let infer = client.post(format!("http://{}/infer", host.address())).header("x-internal-auth", TOKEN);
    let asked = tokio::spawn(infer.json(&edit("now")).send());
    host.wait_for("a model is unloaded to make room for another", 1).await;
    let waiting: Value = serde_json::from_str(&host.get("/jobs/now").await).unwrap();
    assert_eq!((&waiting["state"], &waiting["progress"]), (&json!("queued"), &json!(0)), "{waiting}");
    host.cancel("now").await;
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::GONE);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "cancelled");
    let ended: Value = serde_json::from_str(&host.get("/jobs/now").await).unwrap();
    assert_eq!(ended["state"], "cancelled", "{ended}");
    host.bucket.hold(None);
    host.post("/edit", &edit("edit")).await;
    complete(&mut host, vec![("edit", "tiny-edit")]).await;
    assert_eq!(ids(&host), ["edit"]);
}

#[tokio::test]
async fn handlers_that_are_killed_while_they_load_or_work_keep_no_one_from_the_device() {
    let mut host = sharing(BOTH, "{memory_mib: 1500}", &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let infer = client.post(format!("http://{}/infer", host.address())).header("x-internal-auth", TOKEN);
    let asked = tokio::spawn(infer.json(&edit("now")).send());
    host.wait_for("a model is unloaded to make room for another", 1).await;
    host.post("/edit", &edit("edit")).await;
    // While it loads.
    host.wait_for("a handler was started", 2).await;
    signal(Signal::KILL, handler(&host, 1));
    host.wait_for("a handler ended; another is started after a pause", 1).await;
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "who waits for its answer may try again");
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "handler_crashed");
    complete(&mut host, vec![("edit", "tiny-edit")]).await;
    // While it works, and while a job for the other waits.
    host.bucket.hold(Some("/0.png"));
    host.post("/edit", &edit("unlucky")).await;
    host.bucket.holding().await;
    host.post("/generate", &job("text")).await;
    eventually("both are here", || host.spooled("running").len() == 2).await.unwrap();
    signal(Signal::KILL, handler(&host, 1));
    host.bucket.hold(None);
    complete(&mut host, vec![("text", "tiny-sd"), ("unlucky", "tiny-edit")]).await;
    host.expect_metric("atelier_handler_restarts_total{cause=\"signal\"}", 2.0).await;
    let mut told = ids(&host);
    told.sort();
    assert_eq!(told, ["edit", "text", "unlucky"]);
}

/// Also where the front of the queue is full of jobs for it.
#[tokio::test]
async fn a_model_that_cannot_be_loaded_leaves_the_device_to_the_others() {
    let models = "[{name: sd15, memory_mib: 1000}, {name: tiny-edit, memory_mib: 1000}]";
    let mut host = sharing(models, "{memory_mib: 1500, lookahead: 2}", &[]).await;
    host.kill();
    for id in ["text-1", "text-2", "text-3", "text-4", "text-5"] {
        host.spool(id, &job(id));
    }
    host.spool("zzz-edit", &edit("zzz-edit"));
    host.restart();
    complete(&mut host, vec![("zzz-edit", "tiny-edit")]).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let test = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
    assert_eq!(test.status(), StatusCode::SERVICE_UNAVAILABLE);
    let test: Value = test.json().await.unwrap();
    assert_eq!((&test["status"], &test["models"][0]["status"]), (&json!("failed"), &json!("failed")), "{test}");
    assert!(test["reason"].as_str().unwrap().starts_with("sd15: "), "{test}");
    assert_eq!(host.backend.accepted().len(), 1);
}

#[tokio::test]
async fn a_cancelled_job_that_waits_for_its_model_needs_no_swap() {
    let mut host = sharing(BOTH, "{memory_mib: 1500}", &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.bucket.hold(Some("/0.png"));
    host.post("/generate", &job("text")).await;
    host.bucket.holding().await;
    host.post("/edit", &edit("edit")).await;
    eventually("both are here", || host.spooled("running").len() == 2).await.unwrap();
    host.cancel("edit").await;
    let told = host.backend.terminal().await;
    assert_eq!((&told.body["job_id"], &told.body["error"]["code"]), (&json!("edit"), &json!("cancelled")), "{}", told.body);
    host.bucket.hold(None);
    complete(&mut host, vec![("text", "tiny-sd")]).await;
    assert_eq!(host.handlers().len(), 1);
    assert_eq!(swaps(&host).await, [0, 0]);
}

/// A broker hands out its messages without a look at their models, two at a time.
#[tokio::test]
async fn a_queue_whose_front_is_full_of_jobs_for_another_model_does_not_stand_still() {
    let Some(node) = rabbitmq::shared_or_skip("models that share a device behind RabbitMQ").await else { return };
    let queue = format!("sharing-{}", std::process::id());
    let port = node.port.to_string();
    let broker = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", queue.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
        ("MAX_CONCURRENT_GENERATIONS", "2"),
    ];
    let mut host = sharing(BOTH, "{memory_mib: 1500}", &broker).await;
    host.wait_for("a handler is ready", 1).await;
    let (_connection, channel) = node.peer().await;
    let edits = ["edit-1", "edit-2", "edit-3", "edit-4"].map(|id| (id, edit(id)));
    let texts = ["text-1", "text-2"].map(|id| (id, job(id)));
    let last = [("edit-5", edit("edit-5"))];
    let mut expected = Vec::new();
    for (id, body) in edits.into_iter().chain(texts).chain(last) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let body = body.to_string();
        let sent = channel.basic_publish("".into(), queue.as_str().into(), options, body.as_bytes(), properties);
        sent.await.unwrap().await.unwrap();
        expected.push((id, if id.starts_with("edit") { "tiny-edit" } else { "tiny-sd" }));
    }
    complete(&mut host, expected).await;
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for id in ids(&host) {
        *ends.entry(id).or_default() += 1;
    }
    assert!(ends.len() == 7 && ends.values().all(|times| *times == 1), "{ends:?}");
}

/// Without a process: what each handler is at is what its worker would do next.
#[tokio::test]
async fn a_model_on_two_devices_is_loaded_as_often_as_jobs_wait_for_it() {
    let at = |model, device| HandlerPlace { model, share: Some(Share { device, memory_mib: 8 }) };
    let settings = Settings { memory_mib: Some(8), ..Settings::default() };
    let places = [at(0, 0), at(0, 1), at(1, 0), at(1, 1)];
    let (dispatcher, _cancels) = Dispatcher::new(&places, 1, &settings, Arc::default());
    let demand = dispatcher.demand();
    assert_eq!((*demand.borrow(), dispatcher.states().borrow()[0][0]), (0, ("starting", 2)));
    for slot in [0, 1] {
        assert_eq!(dispatcher.ready(slot), None, "nobody made room for it");
    }
    assert_eq!(*demand.borrow(), 4, "as many as are looked at");
    let shelf = Arc::new(Shelf::default());
    for (count, left) in [(1, 3), (2, 0)] {
        let mut waiting = in_flight(&shelf, &job(&format!("job-{count}")));
        waiting.model = Ok(1);
        assert!(dispatcher.accept(vec![waiting]).is_empty());
        let states = dispatcher.states().borrow().clone();
        assert!(states[0].contains(&("unloading", count)), "{states:?}");
        assert_eq!(*demand.borrow(), left, "nothing is asked for while models are swapped");
    }
    let Next::Unload(unloading) = dispatcher.take(0).await else { panic!("it makes room") };
    assert_eq!(unloading.wanted, 1);
    // Its process is gone.
    tokio::select! {
        biased;
        () = dispatcher.enter(0) => panic!("another has its memory"),
        () = dispatcher.enter(2) => {}
    }
    assert!(dispatcher.ready(2).is_some(), "it was made room for");
    assert!(matches!(dispatcher.take(2).await, Next::Run(_)));
}

#[test]
fn models_that_cannot_share_are_refused_at_the_start() {
    for (models, sharing, says) in [
        (
            "[{name: one, memory_mib: 8}, {name: two}]",
            "{memory_mib: 8}",
            "host.models: two: others share the machine (`memory_mib`)",
        ),
        ("[{name: one, memory_mib: 9}, {name: two}]", "{memory_mib: 8}", "host.models: one: memory_mib 9 is more than the 8"),
        ("[{name: one, memory_mib: 9}]", "{}", "host.sharing.memory_mib: must say how many MiB"),
        ("[{name: one}]", "{memory_mib: 9}", "host.sharing.memory_mib: is set, and no element"),
        (
            "[{name: one, memory_mib: 8, handlers: 2}]",
            "{memory_mib: 8}",
            "host.models: one: a model with `memory_mib` has one handler",
        ),
        (
            "[{name: one, memory_mib: 8, devices: [0]}, {name: two, devices: [1, 0]}]",
            "{memory_mib: 8}",
            "two: others share device 0",
        ),
    ] {
        let environment = [("ATELIER__HOST__MODELS", models), ("ATELIER__HOST__SHARING", sharing)];
        let said = super::models::refused_start(&manifests(), &environment);
        assert!(said.contains(says), "{said} does not say {says:?}");
    }
}

fn manifests() -> [(&'static str, String); 2] {
    ["one", "two"].map(|name| (name, super::models::manifest(name, "generations/")))
}
