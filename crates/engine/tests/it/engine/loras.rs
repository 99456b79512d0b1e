//! Every LoRA file that must be refused, and the good job after it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use atelier_engine::EngineError;
use candle_core::Tensor;

use super::{engine, fixtures, generate, lora};

use crate::device;

const QUERY: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";

/// A LoRA file of zeros with these (key, shape) tensors.
fn file_of(tensors: &[(String, &[usize])]) -> Vec<u8> {
    let tensors = tensors.iter().map(|(key, shape)| {
        let zeros = Tensor::zeros(*shape, candle_core::DType::F32, &device()).expect("zeros");
        (key.clone(), zeros)
    });
    bytes_of(&tensors.collect())
}

fn bytes_of(tensors: &HashMap<String, Tensor>) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("lora.safetensors");
    candle_core::safetensors::save(tensors, &path).expect("saves");
    fs::read(path).expect("reads")
}

fn matrices(module: &str, down: &'static [usize], up: &'static [usize]) -> Vec<(String, &'static [usize])> {
    vec![(format!("{module}.lora_A.weight"), down), (format!("{module}.lora_B.weight"), up)]
}

fn good() -> Vec<u8> {
    fs::read(fixtures().join("loras/peft.safetensors")).expect("the fixture")
}

fn with_a_nan() -> Vec<u8> {
    let mut tensors = candle_core::safetensors::load_buffer(&good(), &device()).expect("the fixture");
    let key = format!("unet.{QUERY}.lora_A.weight");
    let shape = tensors[&key].shape().clone();
    let mut values = vec![0.0_f32; shape.elem_count()];
    values[3] = f32::NAN;
    tensors.insert(key, Tensor::from_vec(values, shape, &device()).expect("a tensor"));
    bytes_of(&tensors)
}

/// Good matrices of a query, and one tensor more.
fn with(module: &str, part: &str, shape: &'static [usize]) -> Vec<u8> {
    let mut tensors = matrices(module, &[4, 16], &[16, 4]);
    tensors.push((format!("{module}.{part}"), shape));
    file_of(&tensors)
}

fn of_both() -> Vec<u8> {
    let module = format!("unet.{QUERY}");
    let mut tensors = matrices(&module, &[4, 16], &[16, 4]);
    tensors.extend([(format!("{module}.dora_scale"), &[16, 1][..]), (format!("{module}.lora_magnitude_vector"), &[16][..])]);
    file_of(&tensors)
}

fn lokr(first: &[usize], second: &[usize]) -> Vec<u8> {
    file_of(&[(format!("unet.{QUERY}.lokr_w1"), first), (format!("unet.{QUERY}.lokr_w2"), second)])
}

fn mixed() -> Vec<u8> {
    let module = format!("unet.{QUERY}");
    let mut tensors = matrices(&module, &[4, 16], &[16, 4]);
    tensors.extend([(format!("{module}.lokr_w1"), &[4, 4][..]), (format!("{module}.lokr_w2"), &[4, 4][..])]);
    file_of(&tensors)
}

/// (name, content, what its error must say).
fn bad_files() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let unknown = ["a", "b", "c", "d"].map(|name| (format!("unet.other.{name}.lora_A.weight"), [4, 16]));
    let unknown: Vec<(String, &[usize])> = unknown.iter().map(|(key, shape)| (key.clone(), &shape[..])).collect();
    let mut partly = matrices(&format!("unet.{QUERY}"), &[4, 16], &[16, 4]);
    partly.push(("text_encoder_2.text_model.embeddings.lora_A.weight".into(), &[4, 16]));
    vec![
        ("a zipped pickle", b"PK\x03\x04 and more".to_vec(), &["pickle", ".safetensors"]),
        ("a bare pickle", b"\x80\x02}q\x00.".to_vec(), &["pickle", ".safetensors"]),
        ("nothing at all", vec![], &["not a whole safetensors file", "upload it again"]),
        ("half a file", good()[..good().len() / 2].to_vec(), &["not a whole safetensors file"]),
        ("a header only", good()[..100].to_vec(), &["not a whole safetensors file"]),
        ("no tensors", file_of(&[]), &["holds no matrices"]),
        ("a NaN", with_a_nan(), &["NaN", "to_q.lora_A.weight"]),
        ("unknown keys", file_of(&unknown), &["4 of 4 keys", "other.a", "other.b", "other.c.lora_A.weight; was"]),
        ("a key too many", file_of(&partly), &["1 of 3 keys", "text_encoder_2"]),
        (
            "another model's",
            file_of(&matrices(&format!("unet.{QUERY}"), &[4, 320], &[320, 4])),
            &["belongs to another model", "320", "[16, 16]"],
        ),
        ("ranks that differ", file_of(&matrices(&format!("unet.{QUERY}"), &[4, 16], &[16, 5])), &["belongs to another model"]),
        (
            "one matrix of two",
            file_of(&[(format!("unet.{QUERY}.lora_A.weight"), &[4, 16])]),
            &["no up (B) matrix", "incomplete"],
        ),
        ("an OFT", file_of(&[("lora_unet_conv_in.oft_blocks".into(), &[4, 4, 4])]), &["OFT", "supported are LoRA, LoCon"]),
        ("half a LoHa", file_of(&[("lora_unet_conv_in.hada_w1_a".into(), &[16, 4])]), &["no hada_w1_b", "incomplete"]),
        ("lengths alone", file_of(&[("lora_unet_conv_in.dora_scale".into(), &[16])]), &["no down (A) matrix", "incomplete"]),
        ("lengths of another model", with(&format!("unet.{QUERY}"), "dora_scale", &[17, 1]), &["its lengths", "[17, 1]"]),
        ("lengths of two kinds", of_both(), &["both dora_scale and lora_magnitude_vector"]),
        ("another model's LoKr", lokr(&[4, 4], &[5, 4]), &["belongs to another model", "another shape"]),
        ("a LoKr and a LoRA", mixed(), &["of one kind alone"]),
        ("a bias that is none", file_of(&[(format!("unet.{QUERY}.diff_b"), &[16])]), &["a bias of [16]"]),
    ]
}

#[test]
fn bad_loras_are_refused_and_the_next_job_is_generated() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut engine = engine();
    let expected = generate(&mut engine, vec![]).expect("generates");
    for (name, content, words) in bad_files() {
        let path = directory.path().join("bad.safetensors");
        fs::write(&path, content).expect("writes");
        let first = lora(fixtures().join("loras/kohya.safetensors"));
        match generate(&mut engine, vec![first, lora(path)]) {
            Err(EngineError::Lora { index: 1, problem }) => {
                for word in words {
                    assert!(problem.contains(word), "{name}: {word:?} is not in {problem:?}");
                }
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(generate(&mut engine, vec![]).expect("generates"), expected, "after {name}");
    }
}

/// Every kind of file with its header mangled: shapes, names, offsets and types that no one would write.
#[test]
fn no_file_however_mangled_ends_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("mangled.safetensors");
    let mut engine = engine();
    let mut random = 0x5DEE_CE66_u64;
    let mut refused = 0;
    let files =
        ["adapters/loha_core", "adapters/lokr", "adapters/dora", "adapters/locon_mid", "adapters/differences", "loras/kohya"];
    for file in files {
        let whole = fs::read(fixtures().join(format!("{file}.safetensors"))).expect("the fixture");
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let place = 8 + random as usize % (header - 8);
                // Digits become other digits, so that the header stays JSON and means something else.
                let digit = b'0' + (random >> 32) as u8 % 10;
                bytes[place] = if bytes[place].is_ascii_digit() { digit } else { bytes[place] };
            }
            fs::write(&path, &bytes).expect("writes");
            refused += u32::from(engine.use_loras(&[lora(path.clone())]).is_err());
        }
    }
    assert!(refused > 60, "only {refused} of 360 were refused");
}

#[test]
fn lora_file_that_is_missing_is_refused() {
    match generate(&mut engine(), vec![lora(Path::new("/nowhere/at/all.safetensors").to_owned())]) {
        Err(EngineError::Lora { index: 0, problem }) => assert!(problem.contains("cannot be read"), "{problem}"),
        other => panic!("{other:?}"),
    }
}
