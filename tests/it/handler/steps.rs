//! `workflow.steps`: a list either starts and runs every job, or is refused at the start.

use std::collections::{BTreeSet, HashMap};

use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::workflow::StepName;
use atelier::workflow::sequence;
use serde_json::{Value, json};

use super::{body, brought_back, one};
use crate::stage::Stage;

const ALL: [StepName; 13] = StepName::BUILT_IN;

/// Every list of up to so many different steps more that begins with `list`.
fn lists(list: &mut Vec<StepName>, more: usize, visit: &mut impl FnMut(&[StepName])) {
    visit(list);
    if more == 0 {
        return;
    }
    for step in ALL {
        if !list.contains(&step) {
            list.push(step);
            lists(list, more - 1, visit);
            list.pop();
        }
    }
}

/// Every choice of steps in the right order, and the same with each step of it in each other place.
fn choices(visit: &mut impl FnMut(&[StepName])) {
    for chosen in 0..1_u32 << ALL.len() {
        let list: Vec<StepName> =
            (0..ALL.len()).filter(|place| chosen >> place & 1 == 1).map(|place| ALL[place].clone()).collect();
        visit(&list);
        for from in 0..list.len() {
            for to in (0..list.len()).filter(|to| *to != from) {
                let mut moved = list.clone();
                let step = moved.remove(from);
                moved.insert(to, step);
                visit(&moved);
            }
        }
    }
}

fn parsed(order: &str) -> Vec<StepName> {
    order.split(", ").map(|name| serde_json::from_value(json!(name)).unwrap()).collect()
}

/// What refusals say, half a million of them: each order that they name is read and checked once.
struct Refusals {
    quoted: [String; ALL.len()],
    orders: HashMap<String, Vec<StepName>>,
}

impl Refusals {
    fn new() -> Self {
        Self { quoted: ALL.map(|step| format!("`{}`", step.as_str())), orders: HashMap::new() }
    }

    /// One names two steps where two are listed, and an order that is taken.
    fn check(&mut self, list: &[StepName], problem: &str) {
        let (what, right) = problem.split_once("; the right order is [").unwrap_or_else(|| panic!("{list:?}: {problem}"));
        let named = self.quoted.iter().filter(|step| what.contains(step.as_str())).count();
        assert_eq!(named, if list.is_empty() { 1 } else { 2 }, "{list:?}: {problem}");
        if !self.orders.contains_key(right) {
            let order = parsed(right.trim_end_matches(']'));
            assert_eq!(sequence::check(&order), Ok(()), "{list:?}: {problem}");
            self.orders.insert(right.to_owned(), order);
        }
        assert!(list.iter().all(|step| self.orders[right].contains(step)), "{list:?}: {problem}");
    }
}

fn address(file: &str) -> String {
    format!("s3://{}/{file}", atelier::demo::local::BUCKET)
}

async fn with_steps(list: &[StepName], capabilities: Capabilities) -> Stage {
    let stage = Stage::with(capabilities, |workflow| workflow.steps = list.to_vec()).await;
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::copy(format!("{fixtures}/images/plain.png"), stage.bucket.path("plain.png")).unwrap();
    std::fs::copy(format!("{fixtures}/sd/adapter_files/unet_alpha.safetensors"), stage.bucket.path("lora.safetensors"))
        .unwrap();
    stage
}

/// Runs a job that needs all that the steps bring; says what its webhook was.
async fn run(list: &[StepName], capabilities: Capabilities, job: Value) {
    let mut stage = with_steps(list, capabilities).await;
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])), "{list:?}");
    assert!(stage.bucket.image(&id, 0).exists(), "{list:?}: {:?}", stage.bucket.keys_put());
    assert_eq!(stage.bucket.puts("/result.json"), 1, "{list:?}");
    if list.contains(&StepName::Notify) {
        assert!(stage.backend.terminal().await.path.ends_with("/complete"), "{list:?}");
    }
}

#[tokio::test]
async fn every_list_starts_and_runs_its_jobs_or_is_refused_at_the_start() {
    let mut runs: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut refusals = Refusals::new();
    let mut visit = |list: &[StepName]| match sequence::check(list) {
        Ok(()) => drop(runs.insert(list.iter().map(|step| step.as_str().to_owned()).collect())),
        Err(problem) => refusals.check(list, &problem),
    };
    // All lists of all steps are 17 billion.
    lists(&mut Vec::new(), 5, &mut visit);
    choices(&mut visit);
    assert_eq!(runs.len(), 256, "all steps in their order, with or without eight of them");
    // For these jobs `mask` has nothing to do: with it, the list of all steps is enough.
    runs.retain(|names| names.len() == ALL.len() || !names.iter().any(|name| name == "mask"));
    let runs: Vec<Vec<StepName>> = runs.into_iter().map(|names| parsed(&names.join(", "))).collect();
    for (number, list) in runs.iter().enumerate() {
        let mut generate = body(&format!("generate-{number}"));
        generate["lora"] = json!([{ "url": address("lora.safetensors") }]);
        generate["init_image"] = json!({ "url": address("plain.png") });
        let mut tryon = json!({
            "job_id": format!("tryon-{number}"), "task": "tryon", "person": address("plain.png"),
            "garments": [address("plain.png")], "mask": address("plain.png"), "resolution": "480p"
        });
        if list.contains(&StepName::Watermark) {
            generate["watermark"] = json!({ "text": "Ada" });
            tryon["watermark"] = json!({ "text": "Ada" });
        }
        run(list, Capabilities::Generate, generate).await;
        run(list, Capabilities::Edit(vec![Mode::Fp8]), tryon).await;
    }
}

/// Any number of the user's own, in any order, in their one place.
#[test]
fn steps_of_the_users_own_stand_before_the_check() {
    let whole = "fetch, preprocess, screen, infer, postprocess, check, watermark, encode, credentials, store, notify";
    let order = parsed(whole);
    let own = parsed("http:rules, command:border");
    for place in 0..=order.len() {
        let mut list = order.clone();
        list.splice(place..place, own.iter().cloned());
        let right = format!("[{}]", whole.replace("check", "http:rules, command:border, check"));
        match sequence::check(&list) {
            Ok(()) => assert_eq!(place, 5, "{list:?}"),
            Err(problem) => {
                assert!(place != 5 && problem.contains("`http:rules`") && problem.ends_with(&right), "{place}: {problem}");
            }
        }
    }
    let twice = parsed("fetch, preprocess, infer, command:border, command:border, encode, store");
    assert!(sequence::check(&twice).is_err_and(|problem| problem.starts_with("`command:border` is listed twice")));
    // Without those that can be left out.
    assert_eq!(sequence::check(&parsed("fetch, preprocess, infer, command:b, http:b, command:a, encode, store")), Ok(()));
    assert!(sequence::check(&parsed("fetch, preprocess, infer, watermark, command:b, encode, store")).is_err());
}

#[tokio::test]
async fn a_watermark_that_no_step_draws_is_refused() {
    let list = [StepName::Fetch, StepName::Preprocess, StepName::Infer, StepName::Encode, StepName::Store, StepName::Notify];
    let mut stage = with_steps(&list, Capabilities::Generate).await;
    let mut job = body("unsigned");
    job["watermark"] = json!({ "text": "Ada" });
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/failed"), "{}", notified.body);
    let message = notified.body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("watermark: ") && message.contains("has no `watermark`"), "{message}");
    assert_eq!(stage.generated(), 0);
}
