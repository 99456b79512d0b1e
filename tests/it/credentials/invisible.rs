//! The invisible mark: which images have it, what their record says of it, and that PyPI's `invisible-watermark` and we read each other.

use std::path::{Path, PathBuf};

use atelier::demo::local::BUCKET;
use atelier::invisible_mark::read;
use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::workflow::invisible::Marked;
use image::RgbImage;
use serde_json::{Value, json};

use super::inspected::{inspected, name};
use super::{FORMATS, address, generated, with_inputs};
use crate::servers::{ask_python, python_or_skip};
use crate::stage::Stage;

/// Of diffusers, `pipelines/stable_diffusion_xl/watermark.py`.
const SDXL: &str = "101100111110110010010000011110111011000110011110";

/// A line for each file: the 48 bits that both methods find. `torch` is wanted by a third method, which nobody asks for.
const READ: &str = r#"
import json, sys, types
sys.modules["torch"] = types.ModuleType("torch")
import cv2
from imwatermark import WatermarkDecoder
for file in json.load(sys.stdin)["files"]:
    methods = ("dwtDctSvd", "dwtDct")
    found = [WatermarkDecoder("bits", 48).decode(cv2.imread(file), method) for method in methods]
    print(" ".join("".join(str(int(bit)) for bit in bits) for bits in found))
"#;

/// Writes the messages that reference code of image models writes, by both methods, into the images of the question, and says how
/// many bits are wrong when they are read again: `dwtDct` does not read all that it writes.
const WRITE: &str = r#"
import json, sys, types
sys.modules["torch"] = types.ModuleType("torch")
import cv2
from imwatermark import WatermarkDecoder, WatermarkEncoder
def bits(number):
    return "bits", [int(bit) for bit in bin(number)[2:]]
messages = {
    "Stable Diffusion XL": bits(0b101100111110110010010000011110111011000110011110),
    "FLUX": bits(0b001010101111111010000111100111001111010100101110),
    "Stable Diffusion 1": ("bytes", b"StableDiffusionV1"),
    "Stable Diffusion 2": ("bytes", b"SDV2"),
}
question = json.load(sys.stdin)
for file in question["files"]:
    for name, (kind, content) in messages.items():
        for method in ("dwtDct", "dwtDctSvd"):
            encoder = WatermarkEncoder()
            encoder.set_watermark(kind, content)
            out = f"{file[:-4]}-{name}-{method}.png"
            cv2.imwrite(out, encoder.encode(cv2.imread(file), method))
            written = encoder._watermarks
            read = WatermarkDecoder("bits", len(written)).decode(cv2.imread(out), method)
            wrong = sum(int(one) != int(other) for one, other in zip(read, written))
            print(json.dumps({"file": out, "found": {"message": name, "method": method, "bits": len(written), "wrong_bits": wrong, "cut": False}}))
"#;

fn record(stage: &Stage, id: &str) -> Value {
    let record = std::fs::read(stage.bucket.path(&format!("generations/{id}/result.json"))).expect("a record");
    serde_json::from_slice(&record).expect("JSON")
}

fn pixels(path: &Path) -> RgbImage {
    let file = std::fs::read(path).expect("a file");
    image::load_from_memory(&file).expect("an image").into_rgb8()
}

fn is_marked(path: &Path) -> bool {
    let image = pixels(path);
    read(image.as_raw(), image.width(), image.height()).is_some()
}

/// Each image of the job: what its record says, next to whether it has the mark.
fn said_and_found(stage: &Stage, id: &str) -> Vec<(Value, bool)> {
    let record = record(stage, id);
    let images = record["images"].as_array().expect("images").iter();
    let found = images.map(|image| {
        let path = stage.bucket.path(image["key"].as_str().expect("a key"));
        (image["invisible_mark"].clone(), is_marked(&path))
    });
    found.collect()
}

/// Smooth, with edges and noise, so that no reader finds in it what is not there.
fn scene(width_px: u32, height_px: u32) -> RgbImage {
    RgbImage::from_fn(width_px, height_px, |x, y| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 29;
        let edge = if (x / 37 + y / 53) % 3 == 0 { 60 } else { 0 };
        image::Rgb([x / 3 + edge, y / 4 + edge / 2, (x + y) / 5].map(|value| (value + noise).min(255) as u8))
    })
}

#[tokio::test]
async fn a_record_says_which_images_have_the_mark_and_why_others_do_not() {
    let marked = json!({ "embedded": true });
    let small = json!({ "embedded": false, "why": "it has fewer than 65536 pixels" });
    let off = json!({ "embedded": false, "why": "`workflow.encode.invisible_mark` is off" });
    for (setting, width, expected) in [
        (Marked::Generated, 256, marked.clone()),
        (Marked::All, 256, marked),
        (Marked::All, 248, small),
        (Marked::Off, 256, off),
    ] {
        let mut stage = Stage::with(Capabilities::Generate, |workflow| workflow.encode.invisible_mark = setting).await;
        let body = json!({ "prompt": "a mug", "width": width, "height": 256, "num_images": 2 });
        for (format, _) in FORMATS {
            generated(&mut stage, format, &body, json!({ "format": format })).await;
            let is_embedded = expected["embedded"] == true;
            let each = (expected.clone(), is_embedded);
            assert_eq!(said_and_found(&stage, format), [each.clone(), each], "{setting:?} {width} {format}");
        }
    }
}

/// "Every pixel outside of the mask stays as it is" is a promise; whoever asks for the mark on all images gives it up.
#[tokio::test]
async fn pixels_that_a_person_is_to_keep_are_not_marked_unless_that_is_asked_for() {
    let own = json!({ "embedded": false,
        "why": "it holds pixels of the person's own, and `workflow.encode.invisible_mark` is `generated`" });
    let embedded = json!({ "embedded": true });
    for (setting, has_mask, create_comparison, expected) in [
        (Marked::Generated, false, false, vec![&embedded]),
        (Marked::Generated, true, false, vec![&own]),
        (Marked::Generated, true, true, vec![&own, &own]),
        (Marked::Generated, false, true, vec![&embedded, &own]),
        (Marked::All, true, true, vec![&embedded, &embedded]),
    ] {
        let tried = |setting: Marked| async move {
            let mut stage = Stage::with(Capabilities::Edit(vec![Mode::Fp8]), |workflow| {
                workflow.encode.invisible_mark = setting;
                workflow.postprocess.create_comparison = create_comparison;
            })
            .await;
            with_inputs(&stage);
            let mut body = json!({ "task": "tryon", "person": address("plain.png"), "garments": [address("plain.png")],
                "resolution": "480p" });
            if has_mask {
                let mask = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/mask.png");
                std::fs::copy(mask, stage.bucket.path("mask.png")).expect("copied");
                body["mask"] = address("mask.png").into();
            }
            let path = generated(&mut stage, "job", &body, json!({})).await;
            (pixels(&path), stage)
        };
        let (image, stage) = tried(setting).await;
        let (unmarked, _) = tried(Marked::Off).await;
        let case = format!("{setting:?}, mask {has_mask}, comparison {create_comparison}");
        let expected: Vec<(Value, bool)> = expected.iter().map(|said| ((*said).clone(), said["embedded"] == true)).collect();
        assert_eq!(said_and_found(&stage, "job"), expected, "{case}");
        assert_eq!(image == unmarked, !expected[0].1, "{case}");
        let furthest = image.iter().zip(unmarked.iter()).map(|(after, before)| after.abs_diff(*before)).max();
        assert!(furthest <= Some(16), "{case}: {furthest:?}");
    }
}

#[tokio::test]
async fn invisible_watermark_reads_the_mark_in_every_format() {
    let Some(venv) = python_or_skip("the invisible mark read by PyPI's invisible-watermark") else { return };
    let mut stage = Stage::set().await;
    scene(600, 480).save(stage.bucket.path("scene.png")).expect("written");
    let start = json!({ "url": format!("s3://{BUCKET}/scene.png") });
    let mut files = Vec::new();
    for (format, _) in FORMATS {
        for (id, body) in [
            ("flat", json!({ "prompt": "a mug", "width": 256, "height": 256, "seed": 255 })),
            ("scene", json!({ "prompt": "a mug", "width": 600, "height": 480, "init_image": start })),
            ("long", json!({ "prompt": "a mug", "width": 1024, "height": 264, "init_image": start })),
        ] {
            files.push(generated(&mut stage, &format!("{id}-{format}"), &body, json!({ "format": format })).await);
        }
    }
    let lines = ask_python(&venv, READ, &json!({ "files": files }));
    assert_eq!(lines.lines().count(), files.len(), "{lines}");
    for (file, line) in files.iter().zip(lines.lines()) {
        assert_eq!(line.split(' ').next(), Some(SDXL), "{}", file.display());
        let (_, json, _) = inspected(&[name(file), "--json"], &[]);
        let report: Value = serde_json::from_str(&json).expect("JSON");
        let found =
            json!({ "message": "Stable Diffusion XL", "method": "dwtDctSvd", "bits": 48, "wrong_bits": 0, "cut": false });
        assert_eq!(report["invisible_mark"], found, "{}", file.display());
    }
    let (_, shown, _) = inspected(&[name(&files[0])], &[]);
    let words = "invisible    the message of Stable Diffusion XL by dwtDctSvd, 0 of 48 bits wrong\n";
    assert!(shown.contains(words), "{shown}");
}

#[test]
fn inspect_reads_what_invisible_watermark_writes() {
    let Some(venv) = python_or_skip("marks of PyPI's invisible-watermark read by us") else { return };
    let home = tempfile::tempdir().expect("a directory");
    let images = [scene(512, 512), scene(300, 400), RgbImage::from_pixel(256, 256, image::Rgb([120, 128, 140]))];
    let plain: Vec<PathBuf> = images.iter().map(|image| home.path().join(format!("{}.png", image.width()))).collect();
    images.iter().zip(&plain).for_each(|(image, path)| image.save(path).expect("written"));
    let lines = ask_python(&venv, WRITE, &json!({ "files": plain }));
    assert_eq!(lines.lines().count(), 24, "{lines}");
    let mut readable = 0;
    for line in lines.lines() {
        let written: Value = serde_json::from_str(line).expect("JSON");
        let (_, json, _) = inspected(&[written["file"].as_str().expect("a file"), "--json"], &[]);
        let report: Value = serde_json::from_str(&json).expect("JSON");
        let bits = |name: &str| written["found"][name].as_u64().expect("a number");
        let is_readable = bits("wrong_bits") * 8 <= bits("bits");
        readable += u32::from(is_readable);
        let expected = if is_readable { written["found"].clone() } else { Value::Null };
        assert_eq!(report["invisible_mark"], expected, "{written}");
    }
    assert!(readable >= 17, "{readable} of 24: {lines}");
    for file in &plain {
        let (_, json, _) = inspected(&[name(file), "--json"], &[]);
        let report: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(report["invisible_mark"], Value::Null, "{json}");
    }
}

/// What cannot be decoded is still inspected for all that stands beside its pixels.
#[test]
fn pixels_that_cannot_be_read_are_said_to_be_so() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/animated.png");
    let (_, json, _) = inspected(&[file, "--json"], &[]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    let problem = report["unreadable_pixels"].as_str().unwrap_or_default();
    assert!(report["invisible_mark"].is_null() && problem.contains("stands still"), "{json}");
    let (_, shown, _) = inspected(&[file], &[]);
    assert!(shown.contains("invisible    the pixels cannot be read: it must be"), "{shown}");
}

/// Banners are images too: what no model would start from is read all the same.
#[test]
fn pixels_of_any_shape_are_looked_at() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/one_pixel.png");
    let (_, json, _) = inspected(&[file, "--json"], &[]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    assert!(report["invisible_mark"].is_null() && report.get("unreadable_pixels").is_none(), "{json}");
}
