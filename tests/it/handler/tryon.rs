//! Try-ons on their way through the steps: which images reach the engine, which come back, and which files are refused.

use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use image::RgbImage;
use serde_json::{Value, json};

use super::{brought_back, one, sqs};
use crate::stage::Stage;

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const WHITE: [u8; 3] = [255, 255, 255];

async fn stage() -> Stage {
    changed(|_| ()).await
}

async fn changed(change: impl FnOnce(&mut atelier::config::Workflow)) -> Stage {
    let stage = Stage::with(Capabilities::Edit(vec![Mode::Fp8]), change).await;
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images");
    std::fs::create_dir_all(stage.bucket.path("images")).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            continue;
        }
        std::fs::copy(entry.path(), stage.bucket.path("images").join(entry.file_name())).unwrap();
    }
    stage
}

fn address(file: &str) -> String {
    format!("s3://{}/images/{file}", atelier::demo::local::BUCKET)
}

fn tryon(id: &str, person: &str) -> Value {
    let person = address(person);
    let garments = [address("plain.png")];
    json!({ "job_id": id, "task": "tryon", "person": person, "garments": garments, "resolution": "480p" })
}

/// The middle of each quarter: above left, above right, below left, below right.
fn quarters(image: &RgbImage) -> [[u8; 3]; 4] {
    let (width, height) = image.dimensions();
    [(1, 1), (3, 1), (1, 3), (3, 3)].map(|(x, y)| image.get_pixel(width * x / 4, height * y / 4).0)
}

fn close(one: [[u8; 3]; 4], other: [[u8; 3]; 4]) -> bool {
    one.iter().flatten().zip(other.iter().flatten()).all(|(one, other)| one.abs_diff(*other) <= 4)
}

#[tokio::test]
async fn every_good_file_is_seen_upright_and_generated_at_its_own_ratio() {
    let mut stage = stage().await;
    let grey = [WHITE, [0; 3], [0; 3], WHITE];
    let coloured = [RED, GREEN, BLUE, WHITE];
    let files = [
        ("plain.png", coloured),
        ("plain.webp", coloured),
        ("cmyk.jpg", coloured),
        ("turned.jpg", coloured),
        ("transparent.png", coloured),
        ("palette.png", coloured),
        ("grey16.png", grey),
    ];
    for (number, (file, expected)) in files.into_iter().enumerate() {
        assert_eq!(stage.handle(one(tryon(&format!("good-{number}"), file), 1)).await, Ok(brought_back(&[])), "{file}");
        let edit = stage.edits().pop().unwrap_or_else(|| panic!("{file} was not generated"));
        assert_eq!((edit.width_px, edit.height_px, edit.images.len()), (480, 720, 2), "{file}");
        assert_eq!((edit.images[0].dimensions(), edit.images[1].dimensions()), ((480, 720), (64, 96)), "{file}");
        assert!(close(quarters(&edit.images[0]), expected), "{file}: {:?}", quarters(&edit.images[0]));
        assert_eq!((edit.steps, edit.seeds), (4, vec![42]), "{file}");
        assert!(stage.bucket.image(&format!("good-{number}"), 0).exists(), "{file}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_generated_with_is_refused_once_in_words() {
    let mut stage = stage().await;
    let image = "must be a PNG, JPEG or WebP image";
    let files = [
        ("text.png", format!("{image}, and is none by its first bytes")),
        ("image.gif", format!("{image}, got image/gif")),
        ("animated.png", format!("{image} that stands still, and this one is an animation")),
        ("animated.webp", format!("{image} that stands still, and this one is an animation")),
        ("truncated.png", format!("{image}, and this one is truncated or damaged")),
        ("one_pixel.png", "must have sides of 16 pixels or more, the longer one at most 4 times the shorter, got 1 x 1".into()),
        ("strip.png", "must have sides of 16 pixels or more, the longer one at most 4 times the shorter, got 200 x 16".into()),
        ("hundred_megapixels.png", "must have at most 40000000 pixels, got 10000 x 10000".into()),
        ("missing.png", "is not there".into()),
    ];
    let cases: Vec<_> = files.iter().flat_map(|case| ["person", "garments[0]"].map(|place| (case, place))).collect();
    let events = cases.iter().enumerate().map(|(number, ((file, _), place))| {
        let mut body = tryon(&format!("bad-{number}"), if *place == "person" { file } else { "plain.png" });
        if *place != "person" {
            body["garments"][0] = address(file).into();
        }
        one(body, 1)
    });
    let replies = stage.handle_all(events.collect()).await;
    let notified = stage.backend.terminals(cases.len()).await;
    for (number, ((file, problem), place)) in cases.iter().enumerate() {
        assert_eq!(replies[number], Ok(brought_back(&[])), "{file}: nothing is retried");
        let notified = &notified[&format!("bad-{number}")];
        assert_eq!(notified.path, "/api/webhooks/inference/failed");
        assert_eq!(notified.body["error"]["field"], *place, "{}", notified.body);
        let message = notified.body["error"]["message"].as_str().unwrap();
        assert!(message.contains(problem) || *file == "missing.png", "{file}: {message}");
    }
    assert_eq!(stage.generated(), 0);
}

#[tokio::test]
async fn a_mask_is_filled_green_for_the_model_and_what_it_leaves_is_put_back() {
    let mut stage = stage().await;
    let mut body = tryon("masked", "plain.png");
    body["mask"] = address("mask.png").into();
    assert_eq!(stage.handle(one(body, 1)).await, Ok(brought_back(&[])));
    let edit = stage.edits().pop().expect("generated");
    assert_eq!(quarters(&edit.images[0]), [RED, GREEN, GREEN, GREEN], "the lower half is to be generated");
    let result = image::open(stage.bucket.image("masked", 0)).unwrap().into_rgb8();
    // The scripted engine generates everything in the seed's number.
    assert_eq!(quarters(&result), [RED, GREEN, [42; 3], [42; 3]]);

    stage.backend.terminal().await;
    let mut body = tryon("other-size", "plain.png");
    body["mask"] = address("square.png").into();
    assert_eq!(stage.handle(one(body, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!((&notified.body["job_id"], &notified.body["error"]["field"]), (&json!("other-size"), &json!("mask")));
    let message = notified.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("must be as large as person, 64 x 96, got 64 x 64"), "{message}");
}

#[tokio::test]
async fn a_comparison_stands_behind_the_results() {
    let mut stage = changed(|workflow| workflow.postprocess.create_comparison = true).await;
    let mut body = tryon("compared", "plain.png");
    body["num_images"] = json!(2);
    assert_eq!(stage.handle(one(body, 1)).await, Ok(brought_back(&[])));
    let sizes = [0, 1, 2, 3].map(|n| image::image_dimensions(stage.bucket.image("compared", n)).unwrap());
    assert_eq!(sizes, [(480, 720), (480, 720), (960 + 22, 720 + 45), (960 + 22, 720 + 45)]);
}

#[tokio::test]
async fn what_the_function_has_no_weights_for_is_refused() {
    let mut stage = stage().await;
    let mut base = tryon("base", "plain.png");
    base["mode"] = json!("base");
    let text = json!({ "job_id": "text", "prompt": "a red mug" });
    assert_eq!(stage.handle(sqs(&[(base, 1, None), (text, 1, None)])).await, Ok(brought_back(&[])));
    for (id, field, words) in [("base", "mode", "must be fp8"), ("text", "task", "does tryon and edit and not generate")] {
        let notified = stage.backend.terminal().await;
        assert_eq!((&notified.body["job_id"], &notified.body["error"]["field"]), (&json!(id), &json!(field)));
        assert!(notified.body["error"]["message"].as_str().unwrap().contains(words), "{}", notified.body);
    }
}

#[tokio::test]
async fn the_default_instruction_names_every_garment_and_an_own_prompt_replaces_it() {
    let mut stage = stage().await;
    let mut several = tryon("several", "plain.png");
    several["garments"] = json!([address("plain.png"), address("plain.webp"), address("palette.png")]);
    let mut own = tryon("own", "plain.png");
    own["prompt"] = json!(" put the coat of image 2 on the person \n");
    assert_eq!(stage.handle(sqs(&[(several, 1, None), (own, 1, None)])).await, Ok(brought_back(&[])));
    let prompts: Vec<String> = stage.edits().into_iter().map(|edit| edit.prompt).collect();
    assert!(prompts[0].contains("the garments of images 2 to 4"), "{prompts:?}");
    assert_eq!(prompts[1], " put the coat of image 2 on the person \n", "letter by letter");
}
