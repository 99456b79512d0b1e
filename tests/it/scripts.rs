//! Watermarks in other scripts: fonts of a directory, shaped and ordered as `HarfBuzz` and `FriBidi` do it through Pillow, refused at the door.

use std::path::{Path, PathBuf};
use std::process::Command;

use atelier::job::capabilities::Capabilities;
use atelier::workflow::text_layout::TextLayout;
use atelier::workflow::text_layout::fonts::Fonts;
use image::{GrayImage, Luma};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::events::sample;
use crate::servers::{ask_python, left_out, python_or_skip};
use crate::stage::Stage;

/// Of Debian's fonts-hosny-amiri, fonts-lohit-deva, fonts-wqy-microhei and fonts-symbola.
const ARABIC: &str = "/usr/share/fonts/opentype/fonts-hosny-amiri/Amiri-Regular.ttf";
const DEVANAGARI: &str = "/usr/share/fonts/truetype/lohit-devanagari/Lohit-Devanagari.ttf";
const CHINESE: &str = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc";
const EMOJI: &str = "/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf";
const ALL: [&str; 4] = [ARABIC, DEVANAGARI, CHINESE, EMOJI];

/// A line that has an em of 256 px in the built-in font, whose line is 2384 of 2048 units high.
const LINE_PX: f32 = 298.0;

/// For each case: how much of the ink of both is common to both, with Pillow's Raqm (`HarfBuzz`, `FriBidi`) and without shaping.
const COMPARE: &str = r#"
import json, sys
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
question = json.load(sys.stdin)
if not (features.check("raqm") and features.check("fribidi")):
    sys.exit()
def ink(font, text):
    blank = Image.new("L", (4096, 1024))
    ImageDraw.Draw(blank).text((256, 256), text, font=font, fill=255)
    return blank
def cropped(image):
    solid = np.array(image) > 127
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return solid[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
def common(one, other):
    height, width = max(one.shape[0], other.shape[0]), max(one.shape[1], other.shape[1])
    def at(ink, y, x):
        blank = np.zeros((height + 8, width + 8), bool)
        blank[y:y + ink.shape[0], x:x + ink.shape[1]] = ink
        return blank
    fixed = at(one, 4, 4)
    shifted = [at(other, y, x) for y in range(0, 8, 2) for x in range(0, 8, 2)]
    return max((fixed & moved).sum() / (fixed | moved).sum() for moved in shifted)
for case in question["cases"]:
    ours = cropped(Image.open(case["mask"]))
    found = []
    for engine in (ImageFont.Layout.RAQM, ImageFont.Layout.BASIC):
        font = ImageFont.truetype(case["font"], 256, layout_engine=engine)
        found.append(common(ours, cropped(ink(font, case["text"]))))
    print(json.dumps(found))
"#;

/// A directory with these fonts, in this order; none where Debian's packages are not installed.
fn directory(fonts: &[&str]) -> Option<TempDir> {
    if let Some(lacking) = fonts.iter().find(|path| !Path::new(path).exists()) {
        left_out("watermarks in other scripts", &format!("{lacking} is not installed"));
        return None;
    }
    let home = tempfile::tempdir().expect("a directory");
    for (number, path) in fonts.iter().enumerate() {
        let ending = Path::new(path).extension().expect("an ending").to_str().expect("text");
        std::fs::copy(path, home.path().join(format!("{number}.{ending}"))).expect("copied");
    }
    Some(home)
}

fn written(home: &Path, name: &str, layout: &TextLayout) -> PathBuf {
    let mask = layout.mask(LINE_PX);
    let image = GrayImage::from_fn(mask.width_px as u32, mask.height_px as u32, |x, y| {
        Luma([(mask.alpha[y as usize * mask.width_px + x as usize] * 255.0) as u8])
    });
    let path = home.join(format!("{name}.png"));
    image.save(&path).expect("written");
    path
}

#[test]
fn text_is_shaped_and_ordered_as_by_another_implementation() {
    let Some(venv) = python_or_skip("watermarks in other scripts drawn by Pillow's Raqm") else { return };
    let cases = [
        ("arabic", ARABIC, "محمد علي سلام", true),
        ("devanagari", DEVANAGARI, "क्षत्रिय हिन्दी", true),
        ("chinese", CHINESE, "北京市朝阳区", false),
        ("emoji", EMOJI, "🦊🌊", false),
    ];
    let Some(home) = directory(&ALL) else { return };
    let mut asked = Vec::new();
    for (name, font, text, _) in cases {
        let fonts = directory(&[font]).expect("as above");
        let layout = TextLayout::new(text, &Fonts::load(Some(fonts.path())).expect("a font")).expect("set");
        asked.push(json!({ "font": font, "text": text, "mask": written(home.path(), name, &layout) }));
    }
    let lines = ask_python(&venv, COMPARE, &json!({ "cases": asked }));
    if lines.is_empty() {
        return left_out("watermarks in other scripts drawn by Pillow's Raqm", "Pillow finds no FriBidi");
    }
    assert_eq!(lines.lines().count(), cases.len(), "{lines}");
    for ((name, .., needs_shaping), line) in cases.iter().zip(lines.lines()) {
        let [shaped, plain]: [f64; 2] = serde_json::from_str(line).expect("two numbers");
        assert!(shaped > 0.9, "{name}: {line}");
        assert_eq!(plain < 0.7, *needs_shaping, "{name}: the comparison sees what shaping does: {line}");
    }
}

#[test]
fn each_character_is_set_in_the_first_font_that_has_it() {
    let Some(all) = directory(&ALL) else { return };
    let Some(arabic) = directory(&[ARABIC]) else { return };
    let fonts = Fonts::load(Some(all.path())).expect("fonts");
    let width = |text: &str| TextLayout::new(text, &fonts).unwrap_or_else(|error| panic!("{text}: {error}")).width_px(100.0);
    // Amiri has Latin letters as well; the built-in font comes first.
    let built_in = TextLayout::new("Ada 2026", &Fonts::built_in()).expect("set").mask(64.0);
    assert_eq!(TextLayout::new("Ada 2026", &fonts).expect("set").mask(64.0), built_in);
    let parts = ["© Ada", "你好", "سلام", "हिन्दी", "🦊"];
    let together = parts.concat();
    let sum: f32 = parts.iter().map(|part| width(part)).sum();
    assert!((width(&together) / sum - 1.0).abs() < 0.1, "{} {sum}", width(&together));
    // Whichever comes first in the text, what is read from right to left stands at the right of a line that begins there.
    let ada = TextLayout::new("Ada", &fonts).expect("set").mask(100.0);
    for text in ["Ada سلام", "سلام Ada"] {
        let whole = TextLayout::new(text, &fonts).expect("set").mask(100.0);
        let below = (ada.top_px - whole.top_px) as usize;
        let rows = whole.alpha.chunks_exact(whole.width_px).skip(below).take(ada.height_px);
        let left: Vec<f32> = rows.flat_map(|row| row[..ada.width_px].iter().copied()).collect();
        assert!(left == ada.alpha, "{text}: Ada is at the left");
    }
    for (text, character) in [("سلام 你", '你'), ("a\u{202E}سلام", '\u{202E}'), ("🦊", '🦊')] {
        let error = TextLayout::new(text, &Fonts::load(Some(arabic.path())).expect("a font")).unwrap_err().to_string();
        let named = format!("U+{:04X}", u32::from(character));
        assert!(error.contains(&named) && error.contains("nor those of `workflow.watermark.fonts`"), "{error}");
    }
}

fn event(id: &str, watermark: &Value) -> Value {
    let mut event = sample("sqs-plain.json");
    let body = json!({ "job_id": id, "prompt": "a mug", "width": 512, "height": 256, "watermark": watermark });
    event["Records"][0]["body"] = json!(body.to_string());
    event
}

#[tokio::test]
async fn what_no_font_can_set_is_refused_before_anything_is_generated() {
    let Some(home) = directory(&[CHINESE]) else { return };
    let mut bare = Stage::set().await;
    let mut stage =
        Stage::with(Capabilities::Generate, |workflow| workflow.watermark.fonts = Some(home.path().to_owned())).await;
    for (has_font, id, watermark, problem) in [
        (false, "none", json!({ "text": "© 北京" }), Some("the built-in font cannot set: U+5317")),
        (true, "other", json!({ "text": "سلام" }), Some("nor those of `workflow.watermark.fonts` cannot set: U+0633")),
        (
            true,
            "wide",
            json!({ "text": "北京市朝阳区北京市朝阳区", "size": 0.3 }),
            Some("does not fit on an image of 512x256 px"),
        ),
        (true, "good", json!({ "text": "© 北京", "size": 0.05, "opacity": 1.0 }), None),
    ] {
        let stage = if has_font { &mut stage } else { &mut bare };
        stage.handle(event(id, &watermark)).await.expect("handled");
        let notified = stage.backend.terminal().await;
        let Some(problem) = problem else {
            assert!(notified.path.ends_with("/complete"), "{id}: {}", notified.body);
            let image = image::open(stage.bucket.image(id, 0)).expect("an image").into_rgb8();
            let first = *image.get_pixel(0, 0);
            let inked =
                image.enumerate_pixels().filter(|(.., pixel)| pixel.0.iter().zip(first.0).any(|(a, b)| a.abs_diff(b) > 60));
            assert!(inked.count() > 100, "the text is there");
            continue;
        };
        assert!(notified.path.ends_with("/failed"), "{id}: {}", notified.body);
        assert_eq!(notified.body["error"]["field"], "watermark.text", "{id}: {}", notified.body);
        assert!(notified.body["error"]["message"].as_str().expect("a message").contains(problem), "{id}: {}", notified.body);
        assert_eq!(stage.generated(), 0, "{id}");
    }
}

#[test]
fn a_directory_that_cannot_be_used_ends_the_start_in_words() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["invoke", concat!(env!("CARGO_MANIFEST_DIR"), "/events/sqs-plain.json")]).env_clear();
    command.env("AWS_STORAGE_BUCKET_NAME", "images").env("ATELIER__WORKFLOW__WATERMARK__FONTS", "/nowhere/fonts");
    let output = command.current_dir(std::env::temp_dir()).output().expect("a process");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("workflow.watermark.fonts: /nowhere/fonts: cannot be read"), "{said}");
}
