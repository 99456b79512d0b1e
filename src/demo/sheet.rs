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
/// From the lower edge of an image to the baseline of its caption, and to the end of its cell.
const BASELINE_PX: u32 = 19;
const CAPTION_PX: u32 = 26;
/// An image's longer side on the sheet.
const SMALLEST_SIDE_PX: u32 = 256;
const LARGEST_SIDE_PX: u32 = 512;

/// What was asked for, as the `atelier` chunk of a generated PNG says it: the prompt, then the names of its LoRAs.
#[must_use]
pub fn caption(png: &[u8]) -> Option<String> {
    let reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let latin1 = &reader.info().uncompressed_latin1_text;
    let utf8 = &reader.info().utf8_text;
    let plain = latin1.iter().find(|chunk| chunk.keyword == "atelier").map(|chunk| chunk.text.clone());
    let text = plain.or_else(|| utf8.iter().find(|chunk| chunk.keyword == "atelier")?.get_text().ok())?;
    let asked: Value = serde_json::from_str(&text).ok()?;
    let names = asked["lora"].as_array().into_iter().flatten().filter_map(|lora| {
        let name = Path::new(lora["url"].as_str()?).file_stem()?.to_string_lossy();
        Some(format!(" + {name}"))
    });
    Some(names.fold(asked["prompt"].as_str()?.to_owned(), |caption, name| caption + &name))
}

/// Lays (caption, image) out in rows, each image in the middle of a cell. Tiny images are enlarged, large ones reduced; a
/// caption that is too long ends in an ellipsis.
#[must_use]
pub fn contact_sheet(images: &[(String, Image)]) -> Image {
    let prints: Vec<_> = images.iter().filter_map(|(caption, image)| Some((caption, print(image)?))).collect();
    let columns = columns(prints.len());
    let rows = prints.len().div_ceil(columns) as u32;
    let cell_width_px = prints.iter().map(|(_, print)| print.width()).max().unwrap_or(0);
    let cell_height_px = prints.iter().map(|(_, print)| print.height()).max().unwrap_or(0) + CAPTION_PX;
    let side = |cells: u32, cell_px: u32| 2 * MARGIN_PX + cells * cell_px + cells.saturating_sub(1) * GAP_PX;
    let columns = columns as u32;
    let mut sheet = RgbImage::from_pixel(side(columns, cell_width_px), side(rows, cell_height_px), PAPER);
    for (index, (caption, print)) in (0..).zip(&prints) {
        let left = MARGIN_PX + index % columns * (cell_width_px + GAP_PX);
        let top = MARGIN_PX + index / columns * (cell_height_px + GAP_PX);
        let image_left = left + (cell_width_px - print.width()) / 2;
        let image_top = top + cell_height_px - CAPTION_PX - print.height();
        let frame = RgbImage::from_pixel(print.width() + 2, print.height() + 2, FRAME);
        imageops::replace(&mut sheet, &frame, i64::from(image_left) - 1, i64::from(image_top) - 1);
        imageops::replace(&mut sheet, print, image_left.into(), image_top.into());
        write(&mut sheet, caption, image_left, top + cell_height_px - CAPTION_PX + BASELINE_PX, print.width());
    }
    Image { width_px: sheet.width(), height_px: sheet.height(), rgb: sheet.into_raw(), seed: 0 }
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

fn write(sheet: &mut RgbImage, caption: &str, left_px: u32, baseline_px: u32, width_px: u32) {
    let Some(text) = TextLayout::lossy(caption) else { return };
    let mask = text.cut_to(width_px as f32, CAPTION_LINE_PX).mask(CAPTION_LINE_PX);
    let top = i64::from(baseline_px) + i64::from(mask.top_px);
    for (index, alpha) in mask.alpha.iter().enumerate() {
        let x = i64::from(left_px) + (index % mask.width_px) as i64;
        let y = top + (index / mask.width_px) as i64;
        let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        let Some(pixel) = place.and_then(|(x, y)| sheet.get_pixel_mut_checked(x, y)) else { continue };
        for (channel, ink) in pixel.0.iter_mut().zip(INK.0) {
            *channel = (f32::from(*channel) * (1.0 - alpha) + f32::from(ink) * alpha).round() as u8;
        }
    }
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
            let asked = json!({ "prompt": prompt, "lora": [{ "url": "s3://loras/ink.safetensors", "scale": 1.0 }] });
            let png = encode(&image(8, 8, [9; 3]), ImageFormat::Png, &[("atelier", asked.to_string())], "").unwrap();
            assert_eq!(caption(&png), Some(format!("{prompt} + ink")));
        }
        let bare = encode(&image(8, 8, [9; 3]), ImageFormat::Png, &[], "").unwrap();
        assert_eq!((caption(&bare), caption(b"no PNG")), (None, None));
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
