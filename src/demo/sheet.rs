//! The contact sheet: all images of a demo in one grid with captions.

use std::io::Cursor;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::workflow::text_layout::TextLayout;
use atelier_engine::Image;

const PAPER: Rgb<u8> = Rgb([250, 249, 246]);
const FRAME: Rgb<u8> = Rgb([226, 223, 216]);
const INK: Rgb<u8> = Rgb([64, 66, 78]);
const MARGIN_PX: u32 = 28;
const GAP_PX: u32 = 20;
const CAPTION_LINE_PX: f32 = 15.0;
/// From one line to the next.
const LINE_PITCH_PX: u32 = 19;
/// From the lower edge of an image to the baseline of its caption's first line, and to the end of its cell where that is the only one.
const BASELINE_PX: u32 = 19;
const CAPTION_PX: u32 = 26;
/// An image's longer side on the sheet.
const SMALLEST_SIDE_PX: u32 = 256;
const LARGEST_SIDE_PX: u32 = 512;

/// What was asked for, as the `atelier` chunk of a generated PNG says it.
#[must_use]
pub fn asked(png: &[u8]) -> Option<Value> {
    let reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let latin1 = &reader.info().uncompressed_latin1_text;
    let utf8 = &reader.info().utf8_text;
    let plain = latin1.iter().find(|chunk| chunk.keyword == "atelier").map(|chunk| chunk.text.clone());
    let text = plain.or_else(|| utf8.iter().find(|chunk| chunk.keyword == "atelier")?.get_text().ok())?;
    serde_json::from_str(&text).ok()
}

/// Whether it was a try-on, which has garments.
#[must_use]
pub fn is_try_on(asked: &Value) -> bool {
    asked["resolution"].is_string()
}

/// The prompt, its LoRAs, whether clothes were masked, the seed: a line each.
#[must_use]
pub fn caption(asked: &Value) -> String {
    let own = asked["prompt"].as_str().filter(|prompt| !prompt.trim().is_empty());
    let first = own.unwrap_or(if is_try_on(asked) { "try-on" } else { "without a prompt" });
    let loras = asked["lora"].as_array().into_iter().flatten().filter_map(|lora| {
        let name = Path::new(lora["url"].as_str()?).file_stem()?.to_string_lossy();
        Some(format!("LoRA {name} × {}", lora["scale"]))
    });
    let mask = asked["auto_mask"].is_object().then(|| "the clothes masked".to_owned());
    let seed = format!("seed {}", asked["seed"]);
    [first.to_owned()].into_iter().chain(loras).chain(mask).chain([seed]).collect::<Vec<_>>().join("\n")
}

/// An image at the size it has on the sheet, and the lines below it.
struct Print {
    image: RgbImage,
    lines: Vec<TextLayout>,
}

impl Print {
    /// `None` where the image has no pixels.
    fn new(caption: &str, image: &Image) -> Option<Self> {
        let image = print(image)?;
        let width_px = image.width() as f32;
        let lines = caption.lines().filter_map(TextLayout::lossy);
        let lines = lines.flat_map(|line| line.in_lines(width_px, CAPTION_LINE_PX)).collect();
        Some(Self { image, lines })
    }
}

/// Lays (caption, image) out in rows, each image with its whole caption below, as wide as the image. Tiny images are enlarged, large ones reduced.
#[must_use]
pub fn contact_sheet(images: &[(String, Image)]) -> Image {
    let prints: Vec<_> = images.iter().filter_map(|(caption, image)| Print::new(caption, image)).collect();
    let rows: Vec<Row<'_>> = prints.chunks(columns(prints.len())).map(Row::new).collect();
    let width_px = rows.iter().map(Row::width_px).max().unwrap_or(0);
    let gaps_px = (rows.len().saturating_sub(1)) as u32 * GAP_PX;
    let height_px = rows.iter().map(|row| row.image_px + row.caption_px).sum::<u32>() + gaps_px;
    let mut sheet = RgbImage::from_pixel(2 * MARGIN_PX + width_px, 2 * MARGIN_PX + height_px, PAPER);
    let mut top = MARGIN_PX;
    for row in &rows {
        row.write(&mut sheet, top);
        top += row.image_px + row.caption_px + GAP_PX;
    }
    Image { width_px: sheet.width(), height_px: sheet.height(), rgb: sheet.into_raw(), seed: 0 }
}

/// Images side by side, which end at one height.
struct Row<'a> {
    prints: &'a [Print],
    /// Height of the tallest image.
    image_px: u32,
    /// And of the longest caption.
    caption_px: u32,
}

impl<'a> Row<'a> {
    fn new(prints: &'a [Print]) -> Self {
        let image_px = prints.iter().map(|print| print.image.height()).max().unwrap_or(0);
        let lines = prints.iter().map(|print| print.lines.len()).max().unwrap_or(0) as u32;
        Self { prints, image_px, caption_px: lines * LINE_PITCH_PX + CAPTION_PX - LINE_PITCH_PX }
    }

    fn width_px(&self) -> u32 {
        let gaps_px = (self.prints.len().saturating_sub(1)) as u32 * GAP_PX;
        self.prints.iter().map(|print| print.image.width()).sum::<u32>() + gaps_px
    }

    fn write(&self, sheet: &mut RgbImage, top: u32) {
        let mut left = MARGIN_PX;
        for Print { image, lines } in self.prints {
            let image_top = top + self.image_px - image.height();
            let frame = RgbImage::from_pixel(image.width() + 2, image.height() + 2, FRAME);
            imageops::replace(sheet, &frame, i64::from(left) - 1, i64::from(image_top) - 1);
            imageops::replace(sheet, image, left.into(), image_top.into());
            for (line, text) in (0..).zip(lines) {
                let baseline_px = top + self.image_px + BASELINE_PX + line * LINE_PITCH_PX;
                text.mask(CAPTION_LINE_PX).write(sheet, (left, baseline_px), INK);
            }
            left += image.width() + GAP_PX;
        }
    }
}

/// The number of columns, near four, that leaves the fewest cells empty.
fn columns(count: usize) -> usize {
    if count <= 4 {
        return count.max(1);
    }
    [4, 5, 3].into_iter().min_by_key(|columns| count.next_multiple_of(*columns) - count).unwrap_or(4)
}

/// The image at the size it has on the sheet; `None` where it has no pixels.
fn print(image: &Image) -> Option<RgbImage> {
    let whole = RgbImage::from_raw(image.width_px, image.height_px, image.rgb.clone())?;
    let side_px = image.width_px.max(image.height_px);
    let scaled = |px: u32| match side_px {
        // Whole factors keep every pixel of the model the same size.
        1..SMALLEST_SIDE_PX => px * SMALLEST_SIDE_PX.div_ceil(side_px),
        LARGEST_SIDE_PX.. => (u64::from(px) * u64::from(LARGEST_SIDE_PX) / u64::from(side_px)) as u32,
        _ => px,
    };
    let width_px = scaled(image.width_px);
    let height_px = scaled(image.height_px);
    (width_px > 0 && height_px > 0).then(|| imageops::resize(&whole, width_px, height_px, FilterType::Lanczos3))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::ImageFormat;
    use crate::workflow::encode::encode;

    fn image(width_px: u32, height_px: u32, colour: [u8; 3]) -> Image {
        let rgb = colour.repeat((width_px * height_px) as usize);
        Image { width_px, height_px, rgb, seed: 0 }
    }

    fn sheet(images: &[Image]) -> RgbImage {
        let captioned: Vec<_> = images.iter().map(|image| ("a caption".to_owned(), image.clone())).collect();
        let sheet = contact_sheet(&captioned);
        RgbImage::from_raw(sheet.width_px, sheet.height_px, sheet.rgb).unwrap()
    }

    #[test]
    fn captions_say_what_was_asked_for() {
        for prompt in ["a blue boat", "ein blaues Böötchen"] {
            let job = json!({ "prompt": prompt, "lora": [{ "url": "s3://loras/ink.safetensors", "scale": 0.8 }], "seed": 7 });
            let png = encode(&image(8, 8, [9; 3]), ImageFormat::Png, &[("atelier", job.to_string())], "").unwrap();
            assert_eq!(asked(&png).map(|asked| caption(&asked)), Some(format!("{prompt}\nLoRA ink × 0.8\nseed 7")));
        }
        assert_eq!(caption(&json!({ "prompt": null, "resolution": "720p", "seed": 42 })), "try-on\nseed 42");
        let bare = encode(&image(8, 8, [9; 3]), ImageFormat::Png, &[], "").unwrap();
        assert_eq!((asked(&bare), asked(b"no PNG")), (None, None));
    }

    #[test]
    fn a_long_prompt_is_there_to_its_end() {
        let long = "a red mug on the beach, ".repeat(8);
        let of = |caption: &str| contact_sheet(&[(caption.to_owned(), image(256, 256, [0, 0, 200]))]).height_px;
        let lines = TextLayout::lossy(&long).unwrap().in_lines(256.0, CAPTION_LINE_PX).len() as u32;
        assert!(lines > 4);
        assert_eq!(of(&long) - of("short"), (lines - 1) * LINE_PITCH_PX);
    }

    #[test]
    fn lays_images_out_in_rows() {
        assert_eq!([0, 1, 3, 4, 5, 6, 7, 8, 9, 12].map(columns), [1, 1, 3, 4, 5, 3, 4, 4, 3, 4]);
        let colours = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200], [200, 0, 200]];
        let sheet = sheet(&colours.map(|colour| image(128, 128, colour)));
        assert_eq!(sheet.dimensions(), (2 * 28 + 3 * 256 + 2 * 20, 2 * 28 + 2 * 282 + 20));
        for (index, colour) in (0..).zip(colours) {
            let centre = (28 + index % 3 * 276 + 128, 28 + index / 3 * 302 + 128);
            assert_eq!(sheet.get_pixel(centre.0, centre.1).0, colour);
        }
    }

    #[test]
    fn writes_captions_below_the_images() {
        let sheet = sheet(&[image(256, 256, [0, 0, 200])]);
        let dark = |y: u32| (0..sheet.width()).any(|x| sheet.get_pixel(x, y).0[0] < 110 && sheet.get_pixel(x, y).0[2] < 110);
        assert!(!dark(28 + 258));
        assert!((28 + 262..28 + 276).any(dark));
    }

    #[test]
    fn takes_any_size_and_any_caption() {
        let sizes = [(1, 1), (64, 512), (2048, 8), (0, 0), (700, 700)];
        let images = sizes.map(|(width_px, height_px)| ("😀 \n".repeat(40), image(width_px, height_px, [9; 3])));
        let sheet = contact_sheet(&images);
        assert_eq!(sheet.rgb.len() as u32, sheet.width_px * sheet.height_px * 3);
        assert_eq!(contact_sheet(&[]).width_px, 2 * MARGIN_PX);
    }
}
