//! Try-ons whose mask is found in the person's image: what stays, what the record says, and what cannot be masked.

use atelier::config;
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::workflow::StepName;
use atelier_engine::resample::{Filter, resize};
use image::{GrayImage, Rgb, RgbImage};
use serde_json::{Value, json};

use super::{brought_back, one};
use crate::companions::segmenter;
use crate::stage::Stage;

/// One of the fixtures' networks, of random weights: what it takes for clothes is of no matter here.
const NETWORK: &str = "oblong";
const GREEN: Rgb<u8> = Rgb([0, 255, 0]);
/// Short side of the results.
const SHORT_PX: u32 = 64;

fn address(file: &str) -> String {
    format!("s3://{}/{file}", atelier::demo::local::BUCKET)
}

/// Blocks of colours, of which the network makes several classes.
fn person() -> RgbImage {
    RgbImage::from_fn(130, 170, |x, y| {
        let block = (x / 33) * 7 + (y / 29) * 13;
        Rgb([40, 90, 160].map(|step| (block * step + x * y) as u8))
    })
}

async fn stage(change: impl FnOnce(&mut config::Workflow)) -> Stage {
    let stage = Stage::segmenting(NETWORK, |workflow| {
        workflow.preprocess.max_short_side_px = Some(SHORT_PX);
        change(workflow);
    })
    .await;
    person().save(stage.bucket.path("person.png")).unwrap();
    stage
}

fn job(id: &str, auto_mask: &Value) -> Value {
    let garments = [address("person.png")];
    json!({ "job_id": id, "task": "tryon", "person": address("person.png"), "garments": garments, "auto_mask": auto_mask })
}

fn record(stage: &Stage, id: &str) -> Value {
    serde_json::from_slice(&std::fs::read(stage.bucket.path(&format!("generations/{id}/result.json"))).unwrap()).unwrap()
}

async fn complete(stage: &mut Stage, job: Value) -> RgbImage {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/complete"), "{}", notified.body);
    image::open(stage.bucket.image(&id, 0)).unwrap().into_rgb8()
}

async fn refused(stage: &mut Stage, job: Value, field: &str, says: &str) {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])), "{id}: nothing is retried");
    let notified = stage.backend.terminal().await;
    assert!(notified.path.ends_with("/failed"), "{id}: {}", notified.body);
    assert_eq!(notified.body["error"]["field"], field, "{id}: {}", notified.body);
    assert!(notified.body["error"]["message"].as_str().unwrap().contains(says), "{id}: {}", notified.body);
}

/// The person as the job generates over it, and the place of each pixel's label.
fn seen() -> (RgbImage, GrayImage) {
    let scaled = resize(&person(), SHORT_PX, 80, Filter::Lanczos);
    let labels = segmenter(NETWORK).segment(&scaled).unwrap();
    (scaled, labels)
}

/// Whether a pixel of this label is at most so many away, to each side, up and down.
fn is_near(labels: &GrayImage, (x, y): (u32, u32), label: usize, px: u32) -> bool {
    let columns = x.saturating_sub(px)..=(x + px).min(labels.width() - 1);
    columns.into_iter().any(|x| {
        (y.saturating_sub(px)..=(y + px).min(labels.height() - 1)).any(|y| usize::from(labels.get_pixel(x, y).0[0]) == label)
    })
}

fn pixels_of(labels: &GrayImage, label: usize) -> usize {
    labels.pixels().filter(|own| usize::from(own.0[0]) == label).count()
}

#[tokio::test]
async fn outside_of_the_clothes_every_pixel_stays_bit_for_bit() {
    // The mark changes pixels of its own.
    let mut stage = stage(|workflow| workflow.encode.invisible_mark = atelier::workflow::invisible::Marked::Off).await;
    let (person, labels) = seen();
    let classes = segmenter(NETWORK).labels().to_vec();
    // The one that is nearest to a fifth of the image.
    let label = (0..classes.len()).min_by_key(|label| pixels_of(&labels, *label).abs_diff(labels.len() / 5)).unwrap();
    let class = classes[label].to_uppercase();
    let result = complete(&mut stage, job("worn", &json!({ "classes": [class], "dilate_px": 3 }))).await;
    let edit = stage.edits().pop().expect("it was generated");
    let mut masked = 0_u32;
    let mut generated = 0_u32;
    for (x, y, own) in person.enumerate_pixels() {
        let within = is_near(&labels, (x, y), label, 3);
        masked += u32::from(within);
        generated += u32::from(within && result.get_pixel(x, y) != own);
        assert!(within || result.get_pixel(x, y) == own, "{x}, {y} is outside, and not the person's own");
        let given = if within { &GREEN } else { own };
        assert_eq!(edit.images[0].get_pixel(x, y), given, "{x}, {y}: what the model is given");
    }
    let pixels = person.width() * person.height();
    assert!(masked < pixels * 9 / 10 && generated > masked / 2, "{masked} of {pixels} may be changed, {generated} were");
    let stored = record(&stage, "worn");
    assert!(stored["timings_ms"]["mask"].is_u64(), "{stored}");
    let made = &stored["auto_mask"];
    assert_eq!((&made["classes"], &made["dilate_px"]), (&json!([classes[label]]), &json!(3)));
    assert_eq!((&made["licence"], made.get("note")), (&json!("CC0-1.0"), None));
    let coverage = made["coverage"].as_f64().unwrap();
    assert!((coverage - f64::from(masked) / f64::from(pixels)).abs() < 1e-4, "{coverage}");
    // Another job of the same person is as it was.
    let plain = complete(&mut stage, job("plain", &Value::Null)).await;
    assert!(plain.pixels().all(|pixel| pixel.0 == [42; 3]));
    assert_eq!(record(&stage, "plain").get("auto_mask"), None);
}

#[tokio::test]
async fn a_mask_of_nearly_all_says_so_and_is_a_hundredth_wider_by_itself() {
    let mut stage = stage(|_| ()).await;
    let classes = segmenter(NETWORK).labels().to_vec();
    complete(&mut stage, job("all", &json!({ "classes": classes }))).await;
    let made = record(&stage, "all")["auto_mask"].clone();
    assert_eq!((&made["dilate_px"], &made["coverage"]), (&json!(SHORT_PX.div_ceil(100)), &json!(1.0)));
    assert_eq!(made["note"], "the mask covers 100 % of the image: next to nothing of it stays as it was");
}

#[tokio::test]
async fn a_person_without_such_clothes_is_never_generated_without_a_mask() {
    let mut stage = stage(|_| ()).await;
    // One colour, of which the network makes one class, or few.
    RgbImage::from_pixel(130, 170, Rgb([9, 9, 9])).save(stage.bucket.path("person.png")).unwrap();
    let flat = resize(&RgbImage::from_pixel(130, 170, Rgb([9, 9, 9])), SHORT_PX, 80, Filter::Lanczos);
    let labels = segmenter(NETWORK).segment(&flat).unwrap();
    let classes = segmenter(NETWORK).labels().to_vec();
    let absent = (0..classes.len()).find(|label| pixels_of(&labels, *label) == 0).expect("a class that is not there");
    let says = format!("shows no {} that a mask could be made of", classes[absent]);
    refused(&mut stage, job("bare", &json!({ "classes": [classes[absent]] })), "person", &says).await;
    assert_eq!(stage.generated(), 0);
}

#[tokio::test]
async fn what_cannot_be_masked_is_refused_before_anything_is_fetched() {
    let mut stage = stage(|_| ()).await;
    refused(
        &mut stage,
        job("class", &json!({ "classes": ["Dress"] })),
        "auto_mask.classes",
        "nothing, coat, trousers, shoe, hat",
    )
    .await;
    let mut none = Stage::with(Capabilities::Edit(vec![Mode::Fp8]), |_| ()).await;
    refused(&mut none, job("none", &json!({})), "auto_mask", "has no segmenter").await;
    let mut without = self::stage(|workflow| workflow.steps.retain(|step| *step != StepName::Mask)).await;
    refused(&mut without, job("without", &json!({})), "auto_mask", "no step `mask`").await;
    assert_eq!((stage.generated(), none.generated(), without.generated()), (0, 0, 0));
}
