//! Orders that share a batch: each gets its own images, its own progress and its own end.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::{PromptSyntax, Settings};
use atelier_engine::thread::EngineThread;
use atelier_engine::{Engine, EngineError, GenerateRequest, Generated, Image, Progress, QueuedRequest, Request, Watch};
use candle_core::DType;

use super::{STEPS, engine, fixtures, lora, request};

use crate::device;

/// A request that differs from [`request`] in what every queued request of a batch may have for itself.
fn request_of(prompt: &str, negative_prompt: &str, seed: u64, images: u64) -> GenerateRequest {
    let mut request = request(vec![]);
    request.prompt = prompt.into();
    request.negative_prompt = negative_prompt.into();
    request.seeds = (seed..seed + images).collect();
    request
}

fn requests() -> [GenerateRequest; 3] {
    [
        request_of("a red lighthouse", "", 7, 1),
        request_of("an old cat", "storm", 1000, 2),
        request_of("the sea", "a dog in blue", 3, 1),
    ]
}

fn queued(request: GenerateRequest) -> QueuedRequest {
    QueuedRequest { request: Request::Generate(request), watch: Watch::new(|_| ()) }
}

/// The largest difference of any channel.
fn difference(ours: &[Image], theirs: &[Image]) -> u8 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs).flat_map(|(ours, theirs)| {
        assert_eq!((ours.seed, ours.width_px, ours.height_px), (theirs.seed, theirs.width_px, theirs.height_px));
        ours.rgb.iter().zip(&theirs.rgb)
    });
    pairs.map(|(ours, theirs)| ours.abs_diff(*theirs)).max().expect("images")
}

#[test]
fn each_order_gets_the_images_that_it_gets_alone() {
    let mut engine = engine();
    let loras = [vec![], vec![lora(fixtures().join("loras/peft.safetensors"))]];
    let schedulers = [
        (Scheduler::plain(Sampler::DpmSolverPlusPlus), 7.5),
        (Scheduler::plain(Sampler::EulerAncestral), 7.5),
        (Scheduler::plain(Sampler::DpmSolverPlusPlusSde), 7.5),
        (Scheduler::plain(Sampler::UniPc), 7.5),
        (Scheduler::plain(Sampler::Ddim), 1.0),
        (Scheduler::plain(Sampler::Heun), 7.5),
        (Scheduler::karras(Sampler::Dpm2Ancestral), 7.5),
        (Scheduler::plain(Sampler::Pndm), 7.5),
    ];
    for (scheduler, guidance_scale) in schedulers {
        for loras in &loras {
            let requests = requests().map(|mut request| {
                request.scheduler = scheduler;
                request.guidance_scale = guidance_scale;
                request.loras.clone_from(loras);
                request
            });
            let alone = requests.clone().map(|request| engine.generate(&request, &Watch::new(|_| ())).expect("generates"));
            let together = engine.generate_together(&requests.map(queued)).expect("generates");
            for (alone, together) in alone.iter().zip(together) {
                assert_eq!(difference(alone, &together.expect("images")), 0, "{scheduler:?}");
            }
        }
    }
}

#[test]
fn prompts_of_several_lengths_are_generated_as_they_are_alone() {
    let settings = Settings::new(fixtures().join("sd15"), DType::F32, device());
    let settings = Settings { prompts: PromptSyntax::Weighted, ..settings };
    let mut engine = StableDiffusion::load(&settings).expect("the fixture loads");
    let [mut first, second, mut third] = requests();
    first.prompt = "a (red:1.4) lighthouse by the sea ".repeat(20);
    third.prompt = "the sea ".repeat(40);
    let requests = [first, second, third];
    let alone = requests.clone().map(|request| engine.generate(&request, &Watch::new(|_| ())).expect("generates"));
    let together = engine.generate_together(&requests.map(queued)).expect("generates");
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(difference(alone, &together.expect("images")), 0);
    }
}

#[test]
fn a_cancelled_order_leaves_the_batch_and_the_others_are_generated() {
    let mut engine = engine();
    let [first, second, third] = requests();
    let alone = engine.generate(&third, &Watch::new(|_| ())).expect("generates");
    let seen: Arc<Mutex<Vec<(u8, u32)>>> = Arc::default();
    let queued_requests = [(0, first), (1, second), (2, third)].map(|(place, request)| {
        let log = Arc::clone(&seen);
        let watch = Watch::new(move |Progress { step, .. }| log.lock().expect("a lock").push((place, step)));
        QueuedRequest { request: Request::Generate(request), watch }
    });
    queued_requests[1].watch.cancel();
    let generated = engine.generate_together(&queued_requests).expect("generates");
    let [first, second, third] = <[Generated; 3]>::try_from(generated).expect("three results");
    assert_eq!(first.expect("images").len(), 1);
    assert!(matches!(second, Err(EngineError::Cancelled)));
    assert_eq!(difference(&alone, &third.expect("images")), 0);
    let all: Vec<u32> = (1..=STEPS).collect();
    let reported: [Vec<u32>; 3] = [0, 1, 2].map(|place| {
        let seen = seen.lock().expect("a lock");
        seen.iter().filter(|(of, _)| *of == place).map(|(_, step)| *step).collect()
    });
    assert_eq!(reported, [all.clone(), vec![1], all]);
}

#[test]
fn one_orders_fault_is_not_the_others() {
    /// Fails whenever seed 1000 is among what it is to generate.
    struct Picky(Box<dyn Engine + Send>);
    impl Engine for Picky {
        fn warm_up(&mut self) -> Result<(), EngineError> {
            Ok(())
        }
        fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
            let mut seeds = queued_requests.iter().map(|queued| match &queued.request {
                Request::Generate(request) => request.seeds[0],
                Request::Edit(request) => request.seeds[0],
            });
            assert!(seeds.all(|seed| seed != 1000), "seed 1000");
            self.0.generate_together(queued_requests)
        }
    }
    let thread = EngineThread::start(|| Ok(Picky(Box::new(engine())))).expect("starts");
    let (sender, results) = mpsc::channel();
    for (place, (batch_slot, request)) in thread.batch_slots(3).into_iter().zip(requests()).enumerate() {
        let sender = sender.clone();
        batch_slot.generate(Request::Generate(request), Watch::new(|_| ()), move |generated| {
            sender.send((place, generated)).expect("someone listens");
        });
    }
    drop(sender);
    for (place, generated) in results {
        match generated {
            Ok(_) => assert_ne!(place, 1),
            Err(error) => {
                assert_eq!(place, 1);
                assert_eq!(error.to_string(), "the engine panicked: seed 1000");
            }
        }
    }
}

#[test]
fn generation_begins_when_the_last_batch_slot_is_taken_or_given_up() {
    let thread = EngineThread::start(|| Ok(engine())).expect("starts");
    let (sender, results) = mpsc::channel();
    let mut batch_slots = thread.batch_slots(3);
    let last = batch_slots.pop().expect("a batch slot");
    let unused = batch_slots.pop().expect("a batch slot");
    let [first, .., third] = requests();
    let notified = sender.clone();
    batch_slots.remove(0).generate(Request::Generate(first), Watch::new(|_| ()), move |generated| {
        notified.send((0, generated.is_ok())).expect("sent");
    });
    // A batch of its own is generated meanwhile, so the first one does wait.
    let notified = sender.clone();
    thread.batch_slot().generate(Request::Generate(requests()[1].clone()), Watch::new(|_| ()), move |generated| {
        notified.send((9, generated.is_ok())).expect("sent");
    });
    assert_eq!(results.recv().expect("a result"), (9, true));
    drop(unused);
    last.generate(Request::Generate(third), Watch::new(|_| ()), move |generated| {
        sender.send((2, generated.is_ok())).expect("sent");
    });
    let ends: Vec<(i32, bool)> = results.iter().collect();
    assert_eq!(ends, [(0, true), (2, true)]);
}
