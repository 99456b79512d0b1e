//! One adapter in many files: orders, spellings and formats that give the same image, and those that are refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{EngineError, Image};
use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{engine, fixtures, generate, lora};

use crate::device;

/// A tensor as it stands in a file.
#[derive(Clone)]
struct Entry {
    key: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Entry {
    fn of(key: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { key: key.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// The same values, which must fit, in another format.
    fn kept_as(&self, dtype: Dtype) -> Self {
        let values = self.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
        let bytes = match dtype {
            Dtype::F64 => values.flat_map(|number| f64::from(number).to_le_bytes()).collect(),
            Dtype::F32 => self.bytes.clone(),
            Dtype::F16 => values.flat_map(|number| half::f16::from_f32(number).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|number| half::bf16::from_f32(number).to_le_bytes()).collect(),
            Dtype::F8_E5M2 => values.map(|number| half::f16::from_f32(number).to_le_bytes()[1]).collect(),
            Dtype::F8_E4M3 => values.map(e4m3).collect(),
            Dtype::I64 => values.flat_map(|number| (number as i64).to_le_bytes()).collect(),
            Dtype::U8 => values.map(|number| number as u8).collect(),
            other => panic!("{other:?}"),
        };
        Self { dtype, bytes, ..self.clone() }
    }

    fn named(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }
}

/// Of ±1, ±0.5 and ±0.25, ±1.5 …: two bits of mantissa at most.
fn e4m3(number: f32) -> u8 {
    let bits = half::f16::from_f32(number / 256.0).to_bits();
    (bits >> 8) as u8 & 0x80 | (bits >> 7) as u8 & 0x7f
}

/// In this order, which the library that writes such files would not keep.
fn file(entries: &[Entry], header: Option<&str>) -> Vec<u8> {
    let mut table = Vec::new();
    let mut begin = 0;
    if let Some(header) = header {
        table.push(format!("\"__metadata__\":{{\"lora_adapter_metadata\":{}}}", serde_json::Value::from(header)));
    }
    for entry in entries {
        let end = begin + entry.bytes.len();
        table.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{begin},{end}]}}",
            serde_json::Value::from(entry.key.as_str()),
            entry.dtype,
            entry.shape
        ));
        begin = end;
    }
    let table = format!("{{{}}}", table.join(","));
    let mut bytes = (table.len() as u64).to_le_bytes().to_vec();
    bytes.extend(table.bytes());
    bytes.extend(entries.iter().flat_map(|entry| entry.bytes.iter().copied()));
    bytes
}

struct Bench {
    engine: StableDiffusion,
    directory: tempfile::TempDir,
    files: usize,
}

impl Bench {
    fn new() -> Self {
        Self { engine: engine(), directory: tempfile::tempdir().expect("a directory"), files: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> PathBuf {
        self.files += 1;
        let path = self.directory.path().join(format!("{}.safetensors", self.files));
        fs::write(&path, bytes).expect("writes");
        path
    }

    fn generate(&mut self, name: &str, bytes: &[u8]) -> Vec<Image> {
        let path = self.write(bytes);
        generate(&mut self.engine, vec![lora(path)]).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn refused(&mut self, name: &str, bytes: &[u8], words: &str) {
        let path = self.write(bytes);
        match generate(&mut self.engine, vec![lora(path)]) {
            Err(EngineError::Lora { index: 0, problem }) => assert!(problem.contains(words), "{name}: {problem}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

const QUERY: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
const OUT: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0";
const TEXT: &str = "encoder.layers.0.self_attn.out_proj";

/// Values that every format of floats holds.
fn pattern(count: usize, seed: usize) -> Vec<f32> {
    const VALUES: [f32; 8] = [0.5, -0.25, 1.0, 0.0, -1.5, 0.125, -0.75, 0.25];
    (0..count).map(|place| VALUES[(place * 7 + seed * 3 + place / 5) % VALUES.len()]).collect()
}

/// (module, down, up) of three modules at rank 4; the fixture's UNet is 16 wide there and 24, its text encoder 24.
fn content(engine_width: &BTreeMap<&'static str, (usize, usize)>) -> Vec<(&'static str, Entry, Entry)> {
    let entries = engine_width.iter().enumerate().map(|(seed, (module, (inside, out)))| {
        let down = Entry::of("down", &[4, *inside], &pattern(4 * inside, seed));
        (*module, down, Entry::of("up", &[*out, 4], &pattern(4 * out, seed + 9)))
    });
    entries.collect()
}

fn widths() -> BTreeMap<&'static str, (usize, usize)> {
    let unet = fs::read(fixtures().join("sd15/unet/diffusion_pytorch_model.safetensors")).expect("the fixture");
    let unet = safetensors::SafeTensors::deserialize(&unet).expect("the fixture");
    let width = |module: &str| {
        let shape = unet.tensor(&format!("{module}.weight")).expect("a module").shape().to_vec();
        (shape[1], shape[0])
    };
    BTreeMap::from([(QUERY, width(QUERY)), (OUT, width(OUT)), (TEXT, (24, 24))])
}

/// A file's entries, `named` giving the keys of a module's down and up matrices and of its alpha, if it has one.
fn spelled(named: impl Fn(&str) -> (String, String, Option<String>), alpha: f32) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (module, down, up) in content(&widths()) {
        let (down_key, up_key, alpha_key) = named(module);
        entries.extend([down.named(&down_key), up.named(&up_key)]);
        entries.extend(alpha_key.map(|key| Entry::of(&key, &[], &[alpha])));
    }
    entries
}

fn kohya(unet: &'static str, text: &'static str) -> impl Fn(&str) -> (String, String, Option<String>) {
    move |module| {
        let prefix = if module == TEXT { text } else { unet };
        let module = format!("{prefix}_{}", module.replace('.', "_"));
        let part = |part: &str| format!("{module}.{part}");
        (part("lora_down.weight"), part("lora_up.weight"), Some(part("alpha")))
    }
}

fn dotted(
    unet: &'static str,
    text: &'static str,
    parts: [&'static str; 2],
) -> impl Fn(&str) -> (String, String, Option<String>) {
    move |module| {
        let prefix = if module == TEXT { text } else { unet };
        (format!("{prefix}{module}{}", parts[0]), format!("{prefix}{module}{}", parts[1]), None)
    }
}

/// Alpha 6 of rank 4 in all of them.
#[test]
fn one_content_in_any_spelling_order_and_format_is_one_image() {
    let mut bench = Bench::new();
    let kohya_file = spelled(kohya("lora_unet", "lora_te_text_model"), 6.0);
    let expected = bench.generate("kohya", &file(&kohya_file, None));
    let plain = generate(&mut bench.engine, vec![]).expect("generates");
    assert_ne!(expected, plain, "the adapter changes the image");

    for (unet, text) in [("lora_unet", "lora_te1_text_model"), ("lycoris", "lycoris_text_model"), ("lora_unet", "lora_te")] {
        assert!(bench.generate(text, &file(&spelled(kohya(unet, text), 6.0), None)) == expected, "{unet} and {text}");
    }
    let header = "{\"r\":4,\"lora_alpha\":6,\"peft_type\":\"LORA\"}";
    let by_component = "{\"unet.r\":4,\"unet.lora_alpha\":6,\"text_encoder.r\":4,\"text_encoder.lora_alpha\":6}";
    let lora_a = [".lora_A.weight", ".lora_B.weight"];
    for (name, entries, header) in [
        ("PEFT's", spelled(dotted("base_model.model.", "base_model.model.text_model.", lora_a), 0.0), header),
        ("transformers 5's", spelled(dotted("base_model.model.", "base_model.model.", lora_a), 0.0), header),
        ("one adapter", spelled(dotted("", "text_model.", lora_a), 0.0), header),
        ("components", spelled(dotted("unet.", "text_encoder.text_model.", lora_a), 0.0), by_component),
        ("dots", spelled(dotted("unet.", "text_encoder.", [".lora.down.weight", ".lora.up.weight"]), 0.0), by_component),
    ] {
        assert!(bench.generate(name, &file(&entries, Some(header))) == expected, "{name}");
    }

    let mut turned = kohya_file.clone();
    turned.reverse();
    assert!(bench.generate("backwards", &file(&turned, None)) == expected, "backwards");
    for shift in 1..kohya_file.len() {
        turned.clone_from(&kohya_file);
        turned.rotate_left(shift);
        turned.swap(0, shift / 2);
        assert!(bench.generate("mixed up", &file(&turned, None)) == expected, "mixed up by {shift}");
    }
    for dtype in [Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
        let entries: Vec<Entry> = kohya_file.iter().map(|entry| entry.kept_as(dtype)).collect();
        assert!(bench.generate("a format", &file(&entries, None)) == expected, "{dtype:?}");
    }
    for dtype in [Dtype::I64, Dtype::U8, Dtype::F64] {
        let entries = kohya_file.iter().map(|entry| if entry.shape.is_empty() { entry.kept_as(dtype) } else { entry.clone() });
        let entries: Vec<Entry> = entries.collect();
        assert!(bench.generate("an alpha", &file(&entries, None)) == expected, "alpha as {dtype:?}");
    }
}

/// The first pattern in the file's order decides, whichever it is.
#[test]
fn patterns_decide_in_the_order_of_the_file() {
    let mut bench = Bench::new();
    let entries = spelled(dotted("", "", [".lora_A.weight", ".lora_B.weight"]), 0.0);
    let mut with = |patterns: &str| {
        let header = format!("{{\"r\":4,\"lora_alpha\":4,\"alpha_pattern\":{{{patterns}}}}}");
        bench.generate(patterns, &file(&entries, Some(&header)))
    };
    let two = with("\"to_q\":2,\"to_out.0\":4,\"out_proj\":4");
    let nine = with("\"to_q\":9");
    assert_ne!(two, nine);
    assert_eq!(with("\"to_q\":2,\"attn1.to_q\":9"), two);
    assert_eq!(with("\"attn1.to_q\":9,\"to_q\":2"), nine);
    assert_eq!(with("\"o_q\":2,\"^down_blocks\\\\..*\\\\.to_q\":9"), nine, "o_q is no whole word");
    assert_eq!(with(&format!("\"^{QUERY}\":2,\"to_[qk]\":9")), two);
}

#[test]
fn files_that_contradict_themselves_are_refused() {
    let mut bench = Bench::new();
    let good = spelled(kohya("lora_unet", "lora_te_text_model"), 6.0);
    let peft = spelled(dotted("unet.", "text_encoder.", [".lora_A.weight", ".lora_B.weight"]), 0.0);
    let both = [good.clone(), peft.clone()].concat();
    bench.refused("two spellings", &file(&both, None), "under two names");
    let mut twice = peft.clone();
    twice.push(peft[0].named(&peft[0].key.replace(".weight", ".default.weight")));
    bench.refused("a matrix twice", &file(&twice, None), "under two names");
    bench.refused("header and tensors", &file(&good, Some("{\"r\":4,\"lora_alpha\":4}")), "an alpha of its own");
    for (header, words) in [
        ("{\"r\":3,\"lora_alpha\":3}", "have the rank 4, the configuration says 3"),
        ("{\"lora_alpha\":3}", "the configuration says 8"),
        ("{\"r\":4,\"use_dora\":true}", "no lora_magnitude_vector"),
        ("{\"r\":4,\"peft_type\":\"LOKR\"}", "the configuration is a Lokr's"),
        ("{\"r\":4,\"peft_type\":\"BOFT\"}", "peft_type is \"BOFT\""),
        ("{\"r\":4,\"init_lora_weights\":\"pissa_niter_4\"}", "changes the model's own weights"),
        ("{\"r\":4,\"use_qalora\":true}", "use_qalora is set"),
        ("{\"r\":4,\"alpha_pattern\":{\"to_(q\":3}}", "no regular expression"),
        ("{\"r\":\"four\"}", "lora_adapter_metadata in its header"),
        ("[]", "must be a JSON object"),
    ] {
        bench.refused(header, &file(&peft, Some(header)), words);
    }
    let with = |key: &str, shape: &[usize]| {
        let count = shape.iter().product();
        file(&[peft.clone(), vec![Entry::of(key, shape, &pattern(count, 1))]].concat(), None)
    };
    let width = widths()[QUERY].1;
    bench.refused("a bias", &with(&format!("unet.{QUERY}.lora_B.bias"), &[width]), "a bias of");
    for (key, shape, kind) in [
        ("lora_unet_conv_in.oft_blocks", &[2, 4, 4][..], "is of OFT"),
        ("lora_unet_conv_in.oft_blocks", &[2, 2, 4, 4], "is of BOFT"),
        ("unet.conv_in.boft_R.default", &[2, 4, 4], "is of BOFT"),
        ("lora_unet_conv_in.b2.weight", &[4, 4], "is of GLoRA"),
        ("lora_unet_conv_in.lora_A", &[4, 4], "is of DyLoRA"),
        ("lora_unet_conv_in.lora_B.3", &[4, 1], "is of DyLoRA"),
        ("unet.conv_in.vera_lambda_b", &[4], "is of VeRA"),
        ("lora_unet_conv_in.weird", &[4], "no part of an adapter that is known"),
        ("bundle_emb.word.clip_g", &[1, 24], "match nothing in the model"),
    ] {
        bench.refused(key, &with(key, shape), kind);
    }
}

/// What has no elements, no matrix, or too many of both: each took the engine down, or a gigabyte.
#[test]
fn hostile_files_are_refused_early() {
    let mut bench = Bench::new();
    let entry = |key: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        Entry::of(key, shape, &vec![0.5; count])
    };
    for (first, second) in [(&[0, 4][..], &[4, 4][..]), (&[16, 0], &[1, 16]), (&[0], &[0])] {
        let entries = [entry(&format!("{QUERY}.lokr_w1"), first), entry(&format!("{QUERY}.lokr_w2"), second)];
        bench.refused("a LoKr of nothing", &file(&entries, None), "has no elements");
    }
    let flat = [entry(&format!("{QUERY}.lokr_w1"), &[16]), entry(&format!("{QUERY}.lokr_w2"), &[1, 16])];
    bench.refused("a LoKr without columns", &file(&flat, None), "another shape");
    let huge =
        [entry(&format!("{QUERY}.lora_A.weight"), &[60_000, 16]), entry(&format!("{QUERY}.lora_B.weight"), &[16, 60_000])];
    bench.refused("a rank of 60000", &file(&huge, None), "more than twice those of the model");
    let integers = entry(&format!("{QUERY}.lora_A.weight"), &[4, 16]).kept_as(Dtype::I64);
    bench.refused("integers", &file(&[integers], None), "is kept as I64; supported are F64");
    let alpha = entry(&format!("{QUERY}.alpha"), &[2]);
    bench.refused("two alphas", &file(&[alpha], None), "is not a single finite number");

    let many: Vec<Entry> = (0..40_000).map(|n| entry(&format!("unet.m{n}.lora_A.weight"), &[])).collect();
    let began = std::time::Instant::now();
    bench.refused("40000 tensors", &file(&many, None), "more than 32768 tensors");
    assert!(began.elapsed().as_secs() < 5, "a table that is too long is not read: {:?}", began.elapsed());
    let notes = "n".repeat(17 << 20);
    bench.refused("17 MiB of notes", &file(&[], Some(&notes)), "has a header of");
    for (name, bytes, words) in [
        ("a page", &b"\n<!DOCTYPE html><html><head>"[..], "is a web page"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer"),
        ("S3's error", b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "is an XML document"),
        ("an answer", b"{\"error\": \"Repository not found\"}", "is JSON text"),
    ] {
        bench.refused(name, bytes, words);
    }
}

#[test]
fn words_bundled_with_a_lora_are_words_of_the_prompt() {
    let mut bench = Bench::new();
    let good = spelled(kohya("lora_unet", "lora_te_text_model"), 6.0);
    let without = bench.generate("no words", &file(&good, None));
    let bundled = |word: &str, suffix: &str, width: usize| {
        let vectors = Entry::of(&format!("bundle_emb.{word}{suffix}"), &[2, width], &pattern(2 * width, 4));
        file(&[good.clone(), vec![vectors]].concat(), None)
    };
    let with = bench.generate("OneTrainer's", &bundled("lighthouse", ".clip_l", 24));
    assert_ne!(with, without, "the prompt's lighthouse is the file's");
    assert_eq!(bench.generate("another key", &bundled("lighthouse", ".string_to_param.*", 24)), with);
    assert_eq!(bench.generate("a word that is not in the prompt", &bundled("<zeppelin>", ".clip_l", 24)), without);
    bench.refused("another encoder's", &bundled("lighthouse", ".clip_l", 32), "belongs to another model");
    bench.refused("a token of the model", &bundled("lighthouse</w>", ".clip_l", 24), "is a token already");
    bench.refused("two words", &bundled("light house", ".clip_l", 24), "none of them white space");
    let wide = Entry::of("bundle_emb.<w>.clip_l", &[200, 24], &pattern(200 * 24, 4));
    bench.refused("200 vectors", &file(&[good.clone(), vec![wide]].concat(), None), "has 200 vectors; at most 128");
    assert_eq!(
        generate(&mut bench.engine, vec![]).expect("generates"),
        generate(&mut engine(), vec![]).expect("generates"),
        "it is gone"
    );
}

/// A checkpoint whose UNet is kept in another format of the same values.
#[test]
fn weights_in_any_format_of_floats_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    super::copy_directory(&fixtures().join("sd15"), directory.path());
    let path = directory.path().join("unet/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&path).expect("the fixture");
    let whole = safetensors::SafeTensors::deserialize(&whole).expect("the fixture");
    // Rounded to what 8 bits hold, so that all formats have the same values.
    let rounded: Vec<Entry> = whole
        .iter()
        .map(|(key, view)| Entry::of(key, view.shape(), &pattern(view.shape().iter().product(), key.len())))
        .collect();
    let mut images = Vec::new();
    for dtype in [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
        let entries: Vec<Entry> = rounded.iter().map(|entry| entry.kept_as(dtype)).collect();
        let views = entries.iter().map(|entry| {
            (entry.key.clone(), TensorView::new(entry.dtype, entry.shape.clone(), &entry.bytes).expect("a tensor"))
        });
        fs::write(&path, safetensors::serialize(views, None).expect("a file")).expect("writes");
        let loaded = StableDiffusion::load(&Settings::new(directory.path().to_owned(), DType::F32, device()));
        let mut loaded = loaded.unwrap_or_else(|error| panic!("{dtype:?}: {error}"));
        images.push(generate(&mut loaded, vec![]).expect("generates"));
    }
    assert!(images.iter().all(|image| *image == images[0]), "one format has other values");
}
