//! The fuzz targets of `fuzz/`, run by proptest on bytes that are nearly right: a valid input, damaged, and inputs of the right parts.

#[path = "../../../fuzz/targets/mod.rs"]
mod targets;

use std::collections::{BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::{Dtype, SafeTensors, View as _};
use serde_json::json;

/// Nothing is written next to the sources when one fails: the case that is printed becomes a test.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// What happens to a valid input on its way.
#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    CutOff(Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Set(index, byte) => *index.get_mut(bytes) = *byte,
            Self::Insert(index, inserted) => {
                let at = index.index(bytes.len());
                bytes.splice(at..at, inserted.iter().copied());
            }
            Self::Remove(index, count) => {
                let from = index.index(bytes.len());
                bytes.drain(from..bytes.len().min(from + count));
            }
            Self::CutOff(index) => bytes.truncate(index.index(bytes.len())),
        }
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<Index>;
    let damage = prop_oneof![
        (index(), any::<u8>()).prop_map(|(index, byte)| Damage::Set(index, byte)),
        (index(), vec(any::<u8>(), 1..8)).prop_map(|(index, bytes)| Damage::Insert(index, bytes)),
        // Text that means something to a parser.
        (index(), select(&["null", "{}", "[", "\"", "-1", "1e400", "\r\n--boundary", "\\u0000"]))
            .prop_map(|(index, text)| Damage::Insert(index, text.as_bytes().to_vec())),
        (index(), 1..16_usize).prop_map(|(index, count)| Damage::Remove(index, count)),
        index().prop_map(Damage::CutOff),
    ];
    vec(damage, 0..4)
}

/// One of `inputs`, damaged a little or not at all.
fn damaged(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(inputs), damages()).prop_map(|(mut bytes, damages)| {
        for damage in damages {
            damage.apply(&mut bytes);
        }
        bytes
    })
}

fn jobs() -> Vec<Vec<u8>> {
    let generate = json!({
        "job_id": "b1f0", "task": "generate", "prompt": "a lighthouse", "negative_prompt": "", "model": "sd15",
        "lora": [{ "url": "s3://bucket/loras/artist-7.safetensors", "scale": 1.0 }], "steps": 50, "guidance_scale": 7.5,
        "scheduler": "dpmsolver++", "width": 512, "height": 512, "num_images": 1, "seed": 42,
        "watermark": { "text": "© Ada", "position": "bottom-right", "opacity": 0.6 },
        "output": { "prefix": "generations/", "format": "png" },
        "callback": { "url": "https://backend.example/hook", "metadata": { "user_id": "u-17" } }
    });
    let tryon = json!({
        "job_id": "t-1", "task": "tryon", "person": "s3://bucket/ada.jpg", "garments": ["s3://bucket/shirt.png"],
        "mask": "https://example.com/mask.png", "mode": "lora", "resolution": "720p"
    });
    [generate, tryon].iter().map(|job| job.to_string().into_bytes()).collect()
}

/// The form of `/tryon` with these fields.
fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in fields {
        let head = format!("--{}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n", targets::BOUNDARY);
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{}--\r\n", targets::BOUNDARY).as_bytes());
    body
}

fn forms() -> Vec<Vec<u8>> {
    let image = include_bytes!("../../../events/images/person.png");
    let whole: &[(&str, &[u8])] = &[
        ("job_id", b"t-1"),
        ("user_id", b"u-1"),
        ("masked_user_image", image),
        ("garment_image", image),
        ("config", br#"{"seed": 42, "steps": 4, "cfg": 1.0, "prompt": null}"#),
    ];
    vec![form(whole), form(&whole[..3]), form(&[])]
}

/// A safetensors file of 4x4 tensors with these names.
fn tensors<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let content: HashMap<&str, Vec<u8>> = names.into_iter().map(|name| (name, vec![0; 64])).collect();
    let views = content
        .iter()
        .map(|(name, bytes)| (*name, safetensors::tensor::TensorView::new(Dtype::F32, vec![4, 4], bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A key of an adapter's file, out of parts of such keys and of anything.
fn key() -> impl Strategy<Value = String> {
    let starts = ["", "unet.", "lora_unet_", "lora_te_", "base_model.model.", "diffusion_model.", "text_encoder."];
    let modules = [
        "conv_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
        "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "text_model.encoder.layers.0.mlp.fc1",
        ".processor.",
    ];
    let ends = [
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_mid.weight",
        ".alpha",
        ".dora_scale",
        ".lora_magnitude_vector",
        ".hada_w1_a",
        ".hada_w1_b",
        ".hada_t1",
        ".hada_w2_a",
        ".hada_w2_b",
        ".lokr_w1",
        ".lokr_w1_a",
        ".lokr_w2",
        ".lokr_w2_b",
        ".lokr_t2",
        ".diff",
        ".diff_b",
        ".w_norm",
        ".oft_blocks",
        "",
    ];
    let built = (select(starts.to_vec()), select(modules.to_vec()), select(ends.to_vec()));
    let built = built.prop_map(|(start, module, end)| format!("{start}{module}{end}"));
    prop_oneof![8 => built, 1 => "\\PC{0,24}"]
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn job_bodies(bytes in damaged(jobs())) {
        targets::job_body(&bytes);
    }

    #[test]
    fn safetensors_headers(bytes in damaged(vec![tensors(["a", "b.weight"]), tensors([])])) {
        targets::safetensors_header(&bytes);
    }

    #[test]
    fn lora_keys(names in vec(key(), 0..6)) {
        targets::lora_keys(&tensors(names.iter().map(String::as_str)));
    }

    #[test]
    fn damaged_loras(bytes in damaged(vec![tensors(["unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"])])) {
        targets::lora_keys(&bytes);
    }

    #[test]
    fn weighted_prompts(prompt in "[a-c ()\\[\\]:.0-9+\\\\é-]{0,80}|\\PC{0,80}") {
        targets::weighted_prompt(prompt.as_bytes());
    }
}

proptest! {
    // A form is read through a runtime of its own.
    #![proptest_config(config(128))]

    #[test]
    fn multipart_forms(bytes in damaged(forms())) {
        targets::multipart_form(&bytes);
    }
}

/// The undamaged inputs are taken, so that damage is damage to something.
#[test]
fn the_inputs_are_valid_before_they_are_damaged() {
    use atelier::job::Job;
    use atelier::job::request::Defaults;

    for job in jobs() {
        assert!(Job::from_json(&job, &Defaults::default()).is_ok(), "{}", String::from_utf8_lossy(&job));
    }
    let file = tensors(["unet.conv_in.lora_A.weight"]);
    assert_eq!(SafeTensors::deserialize(&file).unwrap().tensor("unet.conv_in.lora_A.weight").unwrap().data_len(), 64);
    let to_q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let names = [format!("{to_q}.lora_A.weight"), format!("{to_q}.lora_B.weight")];
    let file = targets::file_of(&tensors(names.iter().map(String::as_str)));
    atelier_engine::lora::check(file.path(), targets::shapes()).unwrap();
}

/// cargo-fuzz finds its targets in fuzz/Cargo.toml; each is a function here, and run above.
#[test]
fn every_target_is_run_on_stable_too() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let names = |text: &str, start: &str, end: char| -> BTreeSet<String> {
        text.split(start).skip(1).map(|rest| rest.split(end).next().unwrap().to_owned()).collect()
    };
    let targets = names(&read("fuzz/Cargo.toml"), "[[bin]]\nname = \"", '"');
    let run = names(&read("tests/it/fuzz/mod.rs"), "    targets::", '(');
    assert_eq!(targets.len(), 5);
    assert!(targets.is_subset(&run), "{targets:?}, run are {run:?}");
    for target in targets {
        assert!(read(&format!("fuzz/fuzz_targets/{target}.rs")).contains(&format!("targets::{target}(")), "{target}");
    }
}
