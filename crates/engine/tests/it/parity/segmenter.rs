//! Labels of pixels against transformers' of the same files (`tests/oracle/segmenter.py`).

use std::path::PathBuf;

use atelier_engine::segmenter::{Segmenter, check};

use super::qwen_text::image;
use super::{Reference, RelativeError, STAGE, Stage, values};
use crate::device;

/// As in the oracle's script: a network, its stages and labels.
const NETWORKS: [(&str, usize, usize); 2] = [("clothes", 4, 18), ("oblong", 3, 5)];
const IMAGES: usize = 3;
/// Of the pixels that a network sees: both are rounded once.
const PIXELS: RelativeError = RelativeError(1e-6);
/// Two scores this near are as good as equal: what differs between two orders of summing decides.
const TIE: f64 = 1e-4;

pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/segmenter")
}

fn segmenter(name: &str) -> Segmenter {
    Segmenter::load(&directory().join(name), &device()).expect("the fixture loads")
}

fn expected() -> Reference {
    Reference::open(&directory().join("expected.safetensors"))
}

#[test]
fn parity_of_segmenters() {
    let expected = expected();
    let mut pixels = Stage::new("segmenters, pixels");
    let mut encoder = Stage::new("segmenters, encoder");
    let mut head = Stage::new("segmenters, decode head");
    for (name, stages, labels) in NETWORKS {
        let segmenter = segmenter(name);
        assert_eq!(segmenter.labels().len(), labels, "{name}");
        assert_eq!(check(&directory().join(name)).expect("its files agree"), segmenter.labels(), "{name}");
        for index in 0..IMAGES {
            let of = |kind: &str| expected.get(&format!("{name}/{index}/{kind}"));
            let seen = segmenter.pixels(&image(expected.get(&format!("input/{index}")))).expect("pixels");
            pixels.compare(&format!("{name}, {index}"), &seen, of("pixels"));
            let found = segmenter.stages(of("pixels")).expect("stages");
            assert_eq!(found.len(), stages, "{name}");
            for (stage, found) in found.iter().enumerate() {
                encoder.compare(&format!("{name}, {index}, stage {stage}"), found, of(&format!("stages/{stage}")));
            }
            let logits = segmenter.logits(&found).expect("logits");
            head.compare(&format!("{name}, {index}"), &logits, of("logits"));
        }
    }
    pixels.finish(PIXELS);
    encoder.finish(STAGE);
    head.finish(STAGE);
}

#[test]
#[expect(clippy::print_stdout, reason = "how many there are is what the command is for")]
fn labels_are_transformers_but_where_two_scores_tie() {
    let expected = expected();
    let mut pixels = 0;
    let mut ties = 0;
    for (name, ..) in NETWORKS {
        let segmenter = segmenter(name);
        for index in 0..IMAGES {
            let of = |kind: &str| values(expected.get(&format!("{name}/{index}/{kind}")));
            let given = image(expected.get(&format!("input/{index}")));
            let ours = segmenter.segment(&given).expect("labels");
            assert_eq!(ours.dimensions(), given.dimensions(), "{name}");
            let theirs = of("labels");
            assert_eq!(ours.as_raw().len(), theirs.len(), "{name}");
            for ((ours, theirs), margin) in ours.as_raw().iter().zip(theirs).zip(of("margins")) {
                let differs = f64::from(*ours) - theirs != 0.0;
                assert!(
                    !differs || margin <= TIE,
                    "{name}, {index}: {ours} for {theirs}, whose score is {margin} above the next"
                );
                ties += usize::from(differs);
                pixels += 1;
            }
        }
    }
    println!("segmenters: {ties} of {pixels} pixels have another label, where two scores are within {TIE:.0e}");
}
