//! What needs PyPI's `c2pa-python` and `pillow`: C2PA's own implementation verifies every format and task, and images stay what they are.

use std::path::{Path, PathBuf};

use atelier::content_credentials::ready;
use atelier::content_credentials::settings::Settings;
use atelier::content_credentials::verify::{State, verify};
use atelier::job::capabilities::Capabilities;
use serde_json::{Value, json};

use super::authority::Authority;
use super::{FORMATS, changed, generated, signing, tasks, with_inputs};
use crate::servers::{ask_python, python_or_skip};
use crate::stage::Stage;

/// A line of JSON for each file of the question: what verification comes to with the root and without, the manifest, and the pixels.
const VERIFY: &str = r#"
import c2pa, hashlib, json, sys
from PIL import Image
question = json.load(sys.stdin)
def found(file, settings):
    reader = c2pa.Reader(file, context=c2pa.Context.from_dict(settings))
    store = json.loads(reader.json())
    codes = [status["code"] for status in store.get("validation_status", [])]
    return {"state": reader.get_validation_state(), "codes": codes, "manifest": store["manifests"][store["active_manifest"]]}
for file in question["files"]:
    answer = {"pixels": hashlib.sha256(Image.open(file).convert("RGB").tobytes()).hexdigest()}
    if question["root"]:
        answer["known"] = found(file, {"trust": {"trust_anchors": question["root"]}})
        answer["unknown"] = found(file, {})
    print(json.dumps(answer))
"#;

fn asked(venv: &Path, root: Option<&str>, files: &[PathBuf]) -> Vec<Value> {
    let question = json!({ "root": root, "files": files });
    let lines = ask_python(venv, VERIFY, &question);
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), files.len(), "{lines}");
    answers
}

/// Of the ingredient at this address within the manifest.
fn title(url: &str, ingredients: &[Value]) -> String {
    let named = ingredients.iter().find(|ingredient| url.ends_with(ingredient["label"].as_str().unwrap_or("none")));
    named.map_or_else(|| url.to_owned(), |ingredient| ingredient["title"].as_str().unwrap_or_default().to_owned())
}

/// (action, digital source type, titles of the ingredients that it names) of each.
fn actions(manifest: &Value) -> Vec<(String, String, Vec<String>)> {
    let assertions = manifest["assertions"].as_array().expect("assertions");
    let actions = assertions.iter().find(|assertion| assertion["label"] == "c2pa.actions.v2").expect("actions");
    let ingredients = manifest["ingredients"].as_array().cloned().unwrap_or_default();
    let actions = actions["data"]["actions"].as_array().expect("a list").iter().map(|action| {
        let named = action["parameters"]["ingredients"].as_array().cloned().unwrap_or_default();
        let named = named.iter().map(|ingredient| title(ingredient["url"].as_str().unwrap_or_default(), &ingredients));
        let source = action["digitalSourceType"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        (action["action"].as_str().expect("a name").to_owned(), source.to_owned(), named.collect())
    });
    actions.collect()
}

fn expected(task: &str, source: &str) -> Vec<(String, String, Vec<String>)> {
    let step = |action: &str, source: &str, named: &[&str]| {
        (action.to_owned(), source.to_owned(), named.iter().map(|name| (*name).to_owned()).collect())
    };
    match task {
        "text" => vec![step("c2pa.created", source, &[])],
        "inpaint" => vec![step("c2pa.opened", "", &["init_image.url"]), step("c2pa.edited", source, &["mask_image.url"])],
        "tryon" => vec![
            step("c2pa.opened", "", &["person"]),
            step("c2pa.placed", "", &["garments[0]"]),
            step("c2pa.placed", "", &["garments[1]"]),
            step("c2pa.edited", source, &[]),
            step("c2pa.watermarked.unbound", "", &[]),
        ],
        _ => vec![
            step("c2pa.opened", "", &["images[0]"]),
            step("c2pa.placed", "", &["images[1]"]),
            step("c2pa.edited", source, &[]),
        ],
    }
}

#[tokio::test]
async fn another_implementation_verifies_each_format_and_task() {
    let Some(venv) = python_or_skip("content credentials verified by PyPI's c2pa-python") else { return };
    let authority = Authority::good();
    let mut signed = Vec::new();
    let mut plain = Vec::new();
    let mut stages = Vec::new();
    for (task, capabilities, body, source) in tasks() {
        let mut signs = Stage::signing(signing(&authority), capabilities.clone(), |_| ()).await;
        let mut bare = Stage::with(capabilities, |_| ()).await;
        with_inputs(&signs);
        with_inputs(&bare);
        for (format, content_type) in FORMATS {
            let output = json!({ "format": format });
            signed.push((task, source, content_type, generated(&mut signs, format, &body, output.clone()).await));
            plain.push(generated(&mut bare, format, &body, output).await);
        }
        stages.extend([signs, bare]);
    }
    let files: Vec<PathBuf> = signed.iter().map(|(.., path)| path.clone()).collect();
    let verified = asked(&venv, Some(&authority.root), &files);
    let unsigned = asked(&venv, None, &plain);
    for (((task, source, content_type, path), answer), bare) in signed.iter().zip(&verified).zip(&unsigned) {
        let place = format!("{task} {content_type}: {answer:#}");
        assert_eq!((&answer["known"]["state"], &answer["known"]["codes"]), (&json!("Trusted"), &json!([])), "{place}");
        let untrusted = (&json!("Valid"), &json!(["signingCredential.untrusted"]));
        assert_eq!((&answer["unknown"]["state"], &answer["unknown"]["codes"]), untrusted, "{place}");
        let manifest = &answer["known"]["manifest"];
        assert_eq!(actions(manifest), expected(task, source), "{place}");
        assert_eq!(manifest["claim_generator_info"][0]["name"], "atelier", "{place}");
        let actions = manifest["assertions"][0]["data"]["actions"].as_array().expect("actions");
        assert!(actions.iter().all(|action| action["when"].is_string()), "{place}");
        let done = actions.iter().find(|action| action["digitalSourceType"].is_string());
        assert_eq!(done.expect("one")["softwareAgent"]["name"], "sd15", "{place}");
        assert_eq!(manifest["signature_info"]["common_name"], "tests signer", "{place}");
        assert_eq!(answer["pixels"], bare["pixels"], "{place}: the pixels are those of the unsigned image");
        let ours = verify(&std::fs::read(path).expect("a file"), content_type, Some(&authority.root)).expect("read");
        assert_eq!(ours.map(|credentials| credentials.state), Some(State::Trusted), "{place}");
    }
}

/// A text and the invisible mark are actions of their own; an image that is too small has no mark, and says nothing of one.
#[tokio::test]
async fn what_was_set_into_an_image_is_said() {
    let Some(venv) = python_or_skip("actions of watermarks read by PyPI's c2pa-python") else { return };
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let job = |side: u32, more: Value| {
        let mut body = json!({ "prompt": "a mug", "width": side, "height": side });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let text = json!({ "watermark": { "text": "AI" } });
    let jobs = [
        ("both", job(256, text.clone()), &["c2pa.created", "c2pa.addedText", "c2pa.watermarked.unbound"][..]),
        ("mark", job(256, json!({})), &["c2pa.created", "c2pa.watermarked.unbound"]),
        ("text", job(64, text), &["c2pa.created", "c2pa.addedText"]),
    ];
    let mut files = Vec::new();
    for (id, body, _) in &jobs {
        files.push(generated(&mut stage, id, body, json!({})).await);
    }
    for ((id, _, expected), answer) in jobs.iter().zip(asked(&venv, Some(&authority.root), &files)) {
        let found: Vec<String> = actions(&answer["known"]["manifest"]).into_iter().map(|(action, ..)| action).collect();
        assert_eq!(
            (found, &answer["known"]["state"]),
            (expected.iter().map(ToString::to_string).collect(), &json!("Trusted")),
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_byte_that_was_changed_shows() {
    let Some(venv) = python_or_skip("changed images seen by PyPI's c2pa-python") else { return };
    let authority = Authority::good();
    let (_, capabilities, body, _) = tasks().remove(0);
    let mut stage = Stage::signing(signing(&authority), capabilities, |_| ()).await;
    for (format, content_type) in FORMATS {
        let path = generated(&mut stage, format, &body, json!({ "format": format })).await;
        let changed = changed(&std::fs::read(&path).expect("a file"));
        let changed_path = path.with_extension(format!("changed.{}", path.extension().expect("one").to_string_lossy()));
        std::fs::write(&changed_path, &changed).expect("written");
        let answer = &asked(&venv, Some(&authority.root), &[changed_path])[0];
        assert_eq!(answer["known"]["state"], "Invalid", "{format}: {answer:#}");
        assert_eq!(answer["known"]["codes"], json!(["assertion.dataHash.mismatch"]), "{format}: {answer:#}");
        let ours = verify(&changed, content_type, Some(&authority.root)).expect("read").expect("credentials");
        assert_eq!((ours.state, ours.failures[0].code.as_str()), (State::Invalid, "assertion.dataHash.mismatch"), "{format}");
    }
}

#[tokio::test]
async fn every_kind_of_key_that_is_taken_verifies() {
    let Some(venv) = python_or_skip("signatures of other keys by PyPI's c2pa-python") else { return };
    let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256];
    for kind in kinds {
        let authority = Authority::of(kind, |_| ());
        let (_, capabilities, body, _) = tasks().remove(0);
        let mut stage = Stage::signing(signing(&authority), capabilities, |_| ()).await;
        let path = generated(&mut stage, "job", &body, json!({})).await;
        let answer = &asked(&venv, Some(&authority.root), &[path])[0];
        assert_eq!(answer["known"]["state"], "Trusted", "{kind:?}: {answer:#}");
    }
}

/// The development signer makes its key where it is told to, once, and is trusted by who trusts its root.
#[tokio::test]
async fn a_development_signer_is_one_of_its_installation() {
    let Some(venv) = python_or_skip("the development signer seen by PyPI's c2pa-python") else { return };
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("signer");
    let settings = Settings { development_directory: Some(directory.clone()), ..Settings::default() };
    let makers: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn({
                let settings = settings.clone();
                move || ready::signing(&settings).expect("made").expect("a signer").subject
            })
        })
        .collect();
    let subjects: Vec<String> = makers.into_iter().map(|maker| maker.join().expect("a subject")).collect();
    assert!(subjects.iter().all(|subject| *subject == subjects[0]), "{subjects:?}");
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("read").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(left, ["signer"]);
    let signing = ready::signing(&settings).expect("kept").expect("a signer");
    assert!(signing.is_development);
    let other = Settings { development_directory: Some(home.path().join("other")), ..Settings::default() };
    assert_ne!(ready::signing(&other).expect("made").expect("a signer").subject, signing.subject);
    let (_, capabilities, body, _) = tasks().remove(0);
    let mut stage = Stage::signing(signing, capabilities, |_| ()).await;
    let path = generated(&mut stage, "job", &body, json!({})).await;
    let root = std::fs::read_to_string(directory.join("root.pem")).expect("its root");
    let answer = &asked(&venv, Some(&root), &[path])[0];
    assert_eq!((&answer["known"]["state"], &answer["unknown"]["state"]), (&json!("Trusted"), &json!("Valid")), "{answer:#}");
}
