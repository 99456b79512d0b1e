//! Properties: one content is one image however its file is written, and what is told as an image shows something.

use atelier_engine::EngineError;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use safetensors::Dtype;

use super::adapters::{Bench, Entry, dotted, file, kohya, spelled};

/// Of the adapter in every spelling; its rank is 4.
const ALPHA: f32 = 6.0;
const SPELLINGS: usize = 7;

/// Nothing is written next to the sources when one fails: the case that is printed becomes a test.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) })
}

/// The same adapter as a library or trainer writes it: its entries, and its header.
fn written(spelling: usize) -> (Vec<Entry>, Option<&'static str>) {
    let one = Some("{\"r\":4,\"lora_alpha\":6,\"peft_type\":\"LORA\"}");
    let each = Some("{\"unet.r\":4,\"unet.lora_alpha\":6,\"text_encoder.r\":4,\"text_encoder.lora_alpha\":6}");
    let matrices = [".lora_A.weight", ".lora_B.weight"];
    match spelling {
        0 => (spelled(kohya("lora_unet", "lora_te_text_model"), ALPHA), None),
        1 => (spelled(kohya("lora_unet", "lora_te1_text_model"), ALPHA), None),
        2 => (spelled(kohya("lycoris", "lycoris_text_model"), ALPHA), None),
        3 => (spelled(dotted("base_model.model.", "base_model.model.text_model.", matrices), 0.0), one),
        4 => (spelled(dotted("", "text_model.", matrices), 0.0), one),
        5 => (spelled(dotted("unet.", "text_encoder.text_model.", matrices), 0.0), each),
        _ => (spelled(dotted("unet.", "text_encoder.", [".lora.down.weight", ".lora.up.weight"]), 0.0), each),
    }
}

#[test]
fn one_content_is_one_image_however_its_file_is_written() {
    let bench = std::cell::RefCell::new(Bench::new());
    let expected = bench.borrow_mut().generate("as kohya", &file(&written(0).0, None));
    let formats = select(vec![Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2]);
    // Nine tensors at most: three modules, each of two matrices and perhaps an alpha.
    let cases = (0..SPELLINGS, proptest::collection::vec(formats, 9), Just((0..9).collect::<Vec<usize>>()).prop_shuffle());
    let checked = runner(48).run(&cases, |(spelling, formats, order)| {
        let (entries, header) = written(spelling);
        let kept: Vec<Entry> = entries.iter().zip(&formats).map(|(entry, dtype)| entry.kept_as(*dtype)).collect();
        let shuffled: Vec<Entry> = order.into_iter().filter_map(|place| kept.get(place).cloned()).collect();
        let made = bench.borrow_mut().generate("in another form", &file(&shuffled, header));
        prop_assert!(made == expected, "another image");
        Ok(())
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}

/// As strong as a file may say, up to what no float holds: an image is told only if something can be seen on it.
#[test]
fn an_image_that_is_reported_shows_something() {
    let bench = std::cell::RefCell::new(Bench::new());
    let checked = runner(48).run(&(-6.0_f32..38.0, any::<bool>()), |(exponent, sign)| {
        let alpha = if sign { 10.0_f32.powf(exponent) } else { -(10.0_f32.powf(exponent)) };
        let entries = spelled(kohya("lora_unet", "lora_te_text_model"), alpha);
        match bench.borrow_mut().try_to_generate(&file(&entries, None)) {
            Ok(images) => {
                let rgb = &images[0].rgb;
                prop_assert!(rgb.iter().any(|value| *value != rgb[0]), "alpha {alpha}: one colour");
            }
            Err(EngineError::NotFinite { .. } | EngineError::Lora { .. }) => {}
            Err(other) => prop_assert!(false, "alpha {alpha}: {other}"),
        }
        Ok(())
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}
