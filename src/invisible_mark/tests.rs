//! What the mark must hold on any image: it is read again, little changes, and nothing is found where nothing was written.

use super::*;

const MESSAGE: &str = "Stable Diffusion XL";

fn found(cut: bool) -> Found {
    Found { message: MESSAGE, method: Method::DwtDctSvd, bits: 48, wrong_bits: 0, cut }
}

/// A scene of shades, edges and noise: `seed` makes another one.
fn scene(width_px: u32, height_px: u32, seed: u32) -> Vec<u8> {
    let pixels = (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y)));
    let rgb = pixels.flat_map(|(x, y)| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519) ^ seed.wrapping_mul(97)) >> 28;
        let edge = if (x / 37 + y / 53 + seed).is_multiple_of(3) { 90 } else { 0 };
        [x * 200 / width_px + edge / 2, y * 180 / height_px + edge / 3, (x + y) / 8 % 160 + edge]
            .map(|value| (value + noise) as u8)
    });
    rgb.collect()
}

fn flat(colour: [u8; 3]) -> Vec<u8> {
    colour.repeat(256 * 256)
}

#[test]
fn what_was_written_is_read_whatever_the_size() {
    for (width_px, height_px) in [(256, 256), (512, 512), (264, 520), (257, 263), (1_000, 66), (66, 1_000)] {
        let mut rgb = scene(width_px, height_px, width_px);
        embed(&mut rgb, width_px, height_px);
        assert_eq!(read(&rgb, width_px, height_px), Some(found(false)), "{width_px}x{height_px}");
    }
}

#[test]
fn colours_without_room_on_one_side_have_the_mark_on_the_other() {
    let extremes = [0, 1, 128, 254, 255];
    for red in extremes {
        for green in extremes {
            for blue in extremes {
                let mut rgb = flat([red, green, blue]);
                embed(&mut rgb, 256, 256);
                assert_eq!(read(&rgb, 256, 256), Some(found(false)), "{red} {green} {blue}");
            }
        }
    }
}

#[test]
fn a_pixel_changes_by_little() {
    let plain = scene(256, 256, 3);
    let mut rgb = plain.clone();
    embed(&mut rgb, 256, 256);
    let differences: Vec<u8> = plain.iter().zip(&rgb).map(|(before, after)| before.abs_diff(*after)).collect();
    assert!(differences.iter().all(|difference| *difference <= 12), "{:?}", differences.iter().max());
    let square: f64 = differences.iter().map(|difference| f64::from(*difference).powi(2)).sum();
    let psnr_db = 10.0 * (255.0_f64.powi(2) / (square / differences.len() as f64)).log10();
    assert!(psnr_db > 42.0, "{psnr_db}");
    assert!(rgb.chunks_exact(3).zip(plain.chunks_exact(3)).all(|(after, before)| after[0] == before[0]), "red stays");
}

#[test]
fn an_image_without_it_has_none() {
    for seed in 0..6 {
        assert_eq!(read(&scene(264, 256, seed), 264, 256), None, "{seed}");
    }
    for colour in [[0; 3], [255; 3], [255, 0, 0], [0, 0, 255], [13, 200, 77]] {
        assert_eq!(read(&flat(colour), 256, 256), None, "{colour:?}");
    }
}

#[test]
fn a_part_of_an_image_still_has_it() {
    let width_px = 512;
    let mut rgb = scene(width_px, 512, 9);
    embed(&mut rgb, width_px, 512);
    for (left_px, top_px, columns, rows) in [(8, 8, 400, 400), (3, 5, 400, 300), (101, 77, 333, 401)] {
        let kept = (top_px..top_px + rows).flat_map(|y| {
            let start = 3 * (y * width_px as usize + left_px);
            rgb[start..start + 3 * columns].iter().copied()
        });
        let kept: Vec<u8> = kept.collect();
        assert_eq!(read(&kept, columns as u32, rows as u32), Some(found(true)), "{left_px} {top_px}");
    }
}

#[test]
fn small_and_narrow_images_have_no_room_or_no_blocks() {
    assert!(!has_room(255, 257) && has_room(256, 256) && has_room(1, 65_536));
    for (width_px, height_px) in [(16, 16), (1, 65_536), (65_536, 7)] {
        let plain = scene(width_px, height_px, 1);
        let mut rgb = plain.clone();
        if has_room(width_px, height_px) {
            embed(&mut rgb, width_px, height_px);
        }
        assert!(rgb == plain && read(&rgb, width_px, height_px).is_none(), "{width_px}x{height_px}");
    }
}
