//! Progress, cancelling, and sizes that cannot be generated.

use std::sync::{Arc, Mutex, OnceLock};

use atelier_engine::preview::Preview;
use atelier_engine::{Engine, EngineError, GenerateRequest, Progress, QueuedRequest, Request, Watch};

use super::{STEPS, engine, fixtures, generate, lora, request};

#[test]
fn progress_counts_every_step() {
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let log = Arc::clone(&seen);
    let watch = Watch::new(move |progress| log.lock().expect("a lock").push(progress));
    engine().generate(&request(vec![]), &watch).expect("generates");
    let expected: Vec<Progress> = (1..=STEPS).map(|step| Progress { step, steps: STEPS }).collect();
    assert_eq!(*seen.lock().expect("a lock"), expected);
}

#[test]
fn cancelling_stops_before_the_next_step_and_the_next_job_is_generated() {
    let mut engine = engine();
    let expected = generate(&mut engine, vec![]).expect("generates");
    let own: Arc<OnceLock<Watch>> = Arc::default();
    let seen: Arc<Mutex<u32>> = Arc::default();
    let handle = Arc::clone(&own);
    let steps = Arc::clone(&seen);
    let watch = Watch::new(move |progress| {
        *steps.lock().expect("a lock") = progress.step;
        if progress.step == 2 {
            handle.get().expect("set below").cancel();
        }
    });
    own.set(watch.clone()).ok().expect("set once");
    assert!(matches!(engine.generate(&request(vec![]), &watch), Err(EngineError::Cancelled)));
    assert_eq!(*seen.lock().expect("a lock"), 2);
    assert_eq!(generate(&mut engine, vec![]).expect("generates"), expected);
}

#[test]
fn the_last_loras_are_not_merged_again() {
    let mut engine = engine();
    let file = |name: &str| vec![lora(fixtures().join("loras").join(name))];
    let merged =
        [vec![], file("peft.safetensors"), file("peft.safetensors"), file("kohya.safetensors"), file("peft.safetensors")];
    let hits = merged.map(|loras| {
        let watch = Watch::new(|_| ());
        engine.generate(&request(loras), &watch).expect("generates");
        watch.pace().lora_cache_hit
    });
    assert_eq!(hits, [None, Some(false), Some(true), Some(false), Some(false)]);
}

#[test]
fn side_that_the_vae_cannot_decode_is_refused() {
    let problem = engine().latent_shape(104, 68).expect_err("68 is no multiple of 8").to_string();
    assert_eq!(problem, "height: must be a multiple of 8, got 68");
}

#[test]
fn a_seed_generates_the_same_image_whatever_its_neighbours() {
    let mut engine = engine();
    let alone = generate(&mut engine, vec![]).expect("generates");
    let mut many = request(vec![]);
    many.seeds = vec![5, 6, 7];
    let images = engine.generate(&many, &Watch::new(|_| ())).expect("generates");
    let same = images.iter().find(|image| image.seed == 7).expect("seeds 5, 6 and 7");
    let largest = alone[0].rgb.iter().zip(&same.rgb).map(|(alone, beside)| alone.abs_diff(*beside)).max();
    assert!(largest <= Some(1), "{largest:?}");
}

#[test]
fn whoever_looks_on_changes_no_image_and_each_request_has_its_own_previews() {
    let mut engine = engine();
    let sea = || GenerateRequest { prompt: "the sea".into(), seeds: vec![3, 4], ..request(vec![]) };
    let plain = |request: GenerateRequest| QueuedRequest { request: Request::Generate(request), watch: Watch::new(|_| ()) };
    let expected = engine.generate_together(&[plain(request(vec![])), plain(sea())]).expect("generates");
    let seen: Arc<Mutex<Vec<(u8, Preview)>>> = Arc::default();
    let watched = |place: u8, wanted: bool, request: GenerateRequest| {
        let log = Arc::clone(&seen);
        let watch =
            Watch::new(|_| ()).with_previews(move || wanted, move |preview| log.lock().expect("a lock").push((place, preview)));
        QueuedRequest { request: Request::Generate(request), watch }
    };
    let unseen = engine.generate_together(&[watched(0, false, request(vec![])), watched(1, false, sea())]).expect("generates");
    assert_eq!(seen.lock().expect("a lock").len(), 0, "nobody wanted one");
    let looked = engine.generate_together(&[watched(0, true, request(vec![])), watched(1, true, sea())]).expect("generates");
    for (expected, generated) in expected.iter().zip(unseen.iter().chain(&looked)).chain(expected.iter().zip(&looked)) {
        assert_eq!(expected.as_ref().expect("images"), generated.as_ref().expect("images"));
    }
    let seen = seen.lock().expect("a lock");
    // A slow device has time for more than one each.
    let of = |place: u8| seen.iter().filter(move |(whose, _)| *whose == place).map(|(_, preview)| preview);
    for place in [0, 1] {
        let steps: Vec<u32> = of(place).map(|preview| preview.step).collect();
        assert!(steps.first() == Some(&1) && steps.is_sorted_by(|one, next| one < next), "{steps:?}");
        assert!(of(place).all(|preview| preview.step < STEPS && preview.steps == STEPS), "the last one is the image itself");
        assert!(
            of(place).all(|preview| (preview.width_px, preview.height_px, preview.image.len()) == (8, 8, 192)),
            "a pixel a latent"
        );
    }
    assert_ne!(of(0).next().map(|preview| &preview.image), of(1).next().map(|preview| &preview.image));
}
