//! Image files in every form against Pillow: the same ones are opened, and with the same pixels.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atelier::image_file;

const MAX_PIXELS: u64 = 1_000_000;
/// Of 255, between zune-jpeg and libjpeg-turbo, measured over the JPEG files here; and on average over a file.
const JPEG_MAX: u8 = 4;
const JPEG_MEAN: f64 = 0.3;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image-files")
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory()).expect("the fixtures").map(|entry| entry.expect("an entry"));
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let files = named.filter(|(name, path)| path.is_file() && name != "refused.txt");
    files.map(|(name, path)| (name, fs::read(path).expect("a file"))).collect()
}

#[test]
fn files_are_opened_or_refused_as_pillow_does_and_have_its_pixels() {
    let refused = fs::read_to_string(directory().join("refused.txt")).expect("the names");
    let refused: Vec<&str> = refused.lines().collect();
    let mut wrong = Vec::new();
    for (name, file) in files() {
        let opened = image_file::open(&file, MAX_PIXELS);
        let expected = directory().join("expected").join(format!("{name}.png"));
        match opened {
            Err(_) if refused.contains(&name.as_str()) => {}
            Ok(_) if refused.contains(&name.as_str()) => wrong.push(format!("{name}: opened, and Pillow refuses it")),
            Err(problem) => wrong.push(format!("{name}: refused, and Pillow opens it: {problem}")),
            Ok(opened) => {
                let expected = image::open(expected).expect("what Pillow saw").into_rgba8();
                let ours = opened.image.to_rgba8();
                if ours.dimensions() != expected.dimensions() {
                    wrong.push(format!("{name}: {:?}, with Pillow {:?}", ours.dimensions(), expected.dimensions()));
                    continue;
                }
                let steps = || ours.as_raw().iter().zip(expected.as_raw()).map(|(ours, theirs)| ours.abs_diff(*theirs));
                let largest = steps().max().expect("pixels");
                let mean = steps().map(f64::from).sum::<f64>() / ours.as_raw().len() as f64;
                let lossy = Path::new(&name).extension().is_some_and(|extension| extension == "jpg");
                let max = if lossy { JPEG_MAX } else { 0 };
                let max_mean = if lossy { JPEG_MEAN } else { 0.0 };
                if largest > max || mean > max_mean {
                    wrong.push(format!("{name}: at most {largest}, on average {mean:.3} of 255 from Pillow's pixels"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_jpeg_that_is_cut_anywhere_is_refused() {
    for name in ["plain.jpg", "progressive.jpg", "restarts-1.jpg", "cmyk.jpg", "exif-6-long.jpg"] {
        let whole = fs::read(directory().join(name)).expect("a file");
        assert!(image_file::open(&whole, MAX_PIXELS).is_ok(), "{name}");
        for length in 3..whole.len() {
            let problem = image_file::open(&whole[..length], MAX_PIXELS).expect_err("must be refused");
            assert!(problem.contains("truncated or damaged"), "{name}, cut at {length}: {problem}");
        }
    }
}

/// Of what the decoder would make another image, or none: the reason, in words.
#[test]
fn a_jpeg_that_is_not_read_here_is_named() {
    let read = |name: &str| fs::read(directory().join(name)).expect("a file");
    let after = |file: &[u8], marker: u8| file.windows(2).position(|pair| pair == [0xff, marker]).expect("a segment") + 4;
    let mut alone = read("sampled-420.jpg");
    let scan = after(&alone, 0xda);
    alone[scan] = 1;
    let mut finer = read("sampled-444.jpg");
    let frame = after(&finer, 0xc0);
    finer[frame + 10] = 0x21;
    let mut thirds = read("sampled-444.jpg");
    thirds[frame + 7] = 0x31;
    let plain = read("plain.jpg");
    let mut bare = plain.clone();
    while let Some(at) = bare.windows(2).position(|pair| pair == [0xff, 0xc4]) {
        let length = usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]]));
        bare.drain(at..at + 2 + length);
    }
    for (file, says) in [
        (alone, "with its colours in scans of their own"),
        (finer, "colours that are finer than its brightness"),
        (thirds, "samples its colours by a factor of 3"),
        (bare, "has no Huffman tables"),
    ] {
        let problem = image_file::open(&file, MAX_PIXELS).expect_err("must be refused");
        assert!(problem.contains(says) && problem.contains("save it again"), "{problem}");
    }
}

/// A header of a scan that says more than it holds, and a file made of headers.
#[test]
fn scans_that_a_jpeg_has_not_and_too_many_of_them_are_refused() {
    let whole = fs::read(directory().join("plain.jpg")).expect("a file");
    let scan = whole.windows(2).position(|pair| pair == [0xff, 0xda]).expect("a scan");
    for header in [&[0xff, 0xda, 0x00, 0x03, 0x03][..], &[0xff, 0xda, 0x00, 0x03, 0xff], &[0xff, 0xda, 0x00, 0x02]] {
        let cut = [&whole[..scan], header, &[0xff, 0xd9]].concat();
        let problem = image_file::open(&cut, MAX_PIXELS).expect_err("must be refused");
        assert!(problem.contains("truncated or damaged"), "{header:?}: {problem}");
        image_file::notes::read(&cut).expect_err("must be refused");
    }
    let length = usize::from(u16::from_be_bytes([whole[scan + 2], whole[scan + 3]]));
    let header = &whole[scan..scan + 2 + length];
    let many = [&whole[..scan], &header.repeat(501), &whole[scan + 2 + length..]].concat();
    let problem = image_file::open(&many, MAX_PIXELS).expect_err("must be refused");
    assert!(problem.contains("501 scans, more than 500"), "{problem}");
}

/// Sixteen ones in a row are no code of any Huffman table. Pillow warns and shows what libjpeg makes up.
#[test]
fn a_jpeg_with_codes_that_do_not_exist_is_refused() {
    for name in ["plain.jpg", "grey.jpg", "sampled-420.jpg"] {
        let mut file = fs::read(directory().join(name)).expect("a file");
        let scan = file.windows(2).rposition(|pair| pair == [0xff, 0xda]).expect("a scan");
        let middle = scan + (file.len() - scan) / 2;
        for place in (middle..middle + 16).step_by(2) {
            file[place..place + 2].copy_from_slice(&[0xff, 0x00]);
        }
        let problem = image_file::open(&file, MAX_PIXELS).expect_err(name);
        assert!(problem.contains("truncated or damaged"), "{name}: {problem}");
    }
}

/// The checksum behind the image's data, the last chunk and what lies there can be gone; the data cannot.
#[test]
fn a_png_may_lack_what_lies_behind_its_data() {
    let whole = fs::read(directory().join("rgb.png")).expect("a file");
    let pixels = image_file::open(&whole, MAX_PIXELS).expect("opened").image;
    let data_end = whole.len() - 12 - 4;
    for length in data_end..whole.len() {
        let opened = image_file::open(&whole[..length], MAX_PIXELS).unwrap_or_else(|problem| panic!("{length}: {problem}"));
        assert_eq!(opened.image, pixels, "cut at {length}");
    }
    for length in 8..data_end - 40 {
        let problem = image_file::open(&whole[..length], MAX_PIXELS).expect_err("must be refused");
        assert!(problem.contains("truncated or damaged"), "cut at {length}: {problem}");
    }
}
