//! What inputs say of themselves: it goes along where it can be read, and never keeps an image from being signed.

use std::path::Path;

use atelier::content_credentials::manifest::{Manifest, Original, Role};
use atelier::content_credentials::verify::{Credentials, State, verify};
use atelier::job::capabilities::{Capabilities, ControlNet, Steering};
use atelier::job::task::control::NetName;
use atelier::job::task::tryon::Mode;
use serde_json::{Value, json};

use super::authority::Authority;
use super::{FORMATS, address, generated, signing, tasks};
use crate::stage::Stage;

fn started(name: &str) -> Value {
    json!({ "prompt": "a mug", "width": 64, "height": 64, "init_image": { "url": address(name) } })
}

fn credentials(path: &Path, content_type: &str, authority: &Authority) -> Credentials {
    let file = std::fs::read(path).expect("an image");
    verify(&file, content_type, Some(&authority.root)).expect("read").expect("credentials")
}

fn parent(credentials: &Credentials) -> Value {
    let active = credentials.manifests["active_manifest"].as_str().expect("a label");
    credentials.manifests["manifests"][active]["ingredients"][0].clone()
}

#[tokio::test]
async fn the_manifest_of_an_input_goes_along_unless_metadata_are_withheld() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let (_, _, body, _) = tasks().remove(0);
    for (format, content_type) in FORMATS {
        let first = generated(&mut stage, &format!("first-{format}"), &body, json!({ "format": format })).await;
        std::fs::copy(&first, stage.bucket.path("input")).expect("copied");
        for (level, goes_along) in [("full", true), ("minimal", true), ("none", false)] {
            let id = format!("{format}-{level}");
            let output = json!({ "format": format, "metadata": level });
            let path = generated(&mut stage, &id, &started("input"), output).await;
            let found = credentials(&path, content_type, &authority);
            let parent = parent(&found);
            assert_eq!(found.state, State::Trusted, "{id}: {found:?}");
            assert_eq!((&parent["title"], &parent["relationship"]), (&json!("init_image.url"), &json!("parentOf")), "{id}");
            assert_eq!(parent["active_manifest"].is_string(), goes_along, "{id}: {parent:#}");
            let manifests = found.manifests["manifests"].as_object().expect("manifests").len();
            assert_eq!(manifests, 1 + usize::from(goes_along), "{id}");
            let has_model = found.manifests.to_string().contains("\"sd15\"");
            assert_eq!(has_model, goes_along, "{id}: the model is named where metadata are not withheld");
        }
        std::fs::remove_file(stage.bucket.path("input")).expect("removed");
    }
}

/// It was looked at, and none of its pixels is in the image.
#[tokio::test]
async fn what_a_controlnet_or_an_ip_adapter_looks_at_is_an_input_of_the_image() {
    let authority = Authority::good();
    let canny = NetName::new("canny").expect("a name");
    let controlnets = vec![ControlNet { name: canny.clone(), image: canny }];
    let capabilities =
        Capabilities::Steered(Steering { controlnets, ip_adapters: vec![NetName::new("plus").expect("a name")] });
    let mut stage = Stage::signing(signing(&authority), capabilities, |_| ()).await;
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/plain.png");
    std::fs::copy(plain, stage.bucket.path("input")).expect("copied");
    let control = json!({ "name": "canny", "image": { "url": address("input") }, "detect": "canny" });
    let prompt = json!({ "name": "plus", "images": [address("input")] });
    let text = json!({ "prompt": "a mug", "width": 64, "height": 64, "controlnets": [control], "ip_adapters": [prompt] });
    let mut started = started("input");
    for field in ["controlnets", "ip_adapters"] {
        started[field] = text[field].clone();
    }
    for (id, body, made, action) in [
        ("text", text, "trainedAlgorithmicMedia", "c2pa.created"),
        ("started", started, "compositeWithTrainedAlgorithmicMedia", "c2pa.edited"),
    ] {
        let path = generated(&mut stage, id, &body, json!({})).await;
        let found = credentials(&path, "image/png", &authority);
        assert_eq!(found.state, State::Trusted, "{id}: {:?}", found.failures);
        let active = found.manifests["active_manifest"].as_str().expect("a label");
        let manifest = &found.manifests["manifests"][active];
        let ingredients = manifest["ingredients"].as_array().expect("ingredients");
        for title in ["controlnets[0].image.url", "ip_adapters[0].images[0]"] {
            let seen = ingredients.iter().find(|ingredient| ingredient["title"] == title).expect(title);
            assert_eq!(seen["relationship"], "inputTo", "{id}");
        }
        assert_eq!(ingredients.len(), if id == "text" { 2 } else { 3 }, "{id}");
        let actions = manifest.to_string();
        assert!(actions.contains(action) && actions.contains(&format!("/{made}\"")), "{id}: {manifest:#}");
    }
}

/// c2pa reads no image at the end of 200 edits of edits: beyond a hundred the earlier ones stay out.
#[test]
fn an_image_that_was_edited_over_and_over_still_verifies() {
    let authority = Authority::good();
    let signing = signing(&authority);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/plain.png");
    let plain = std::fs::read(fixture).expect("an image");
    let mut file = plain.clone();
    let mut manifests = Vec::new();
    for _ in 0..104 {
        let original = Original { role: Role::Parent, field: "images[0]".into(), format: "image/png", file: Some(file) };
        let manifest = Manifest::new(&signing, None, "http://example.org/source", &[original]).expect("described");
        file = manifest.sign(&signing, &plain, "image/png", false).expect("signed").file;
        manifests.push(file.len());
    }
    let found = verify(&file, "image/png", Some(&authority.root)).expect("read").expect("credentials");
    assert_eq!(found.state, State::Trusted, "{:?}", found.failures);
    let dropped = manifests.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert_eq!(dropped, 1, "the chain began anew: {manifests:?}");
}

#[tokio::test]
async fn an_input_whose_manifest_is_changed_damaged_or_hostile_is_still_an_input() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Generate, |_| ()).await;
    let (_, _, body, _) = tasks().remove(0);
    let first = generated(&mut stage, "first", &body, json!({ "format": "jpeg" })).await;
    let whole = std::fs::read(&first).expect("an image");
    let manifest = whole.windows(4).position(|window| window == b"jumb").expect("a manifest");
    for number in 0..24 {
        // Somewhere in the boxes of the manifest, whose segment keeps its length.
        let mut damaged = whole.clone();
        let at = manifest + 4 + number * 97;
        for (offset, byte) in damaged[at..at + 3].iter_mut().enumerate() {
            *byte ^= [0xff, 0x80, 0x41][offset];
        }
        let name = format!("input-{number}");
        std::fs::write(stage.bucket.path(&name), &damaged).expect("written");
        let path = generated(&mut stage, &format!("job-{number}"), &started(&name), json!({})).await;
        let found = credentials(&path, "image/png", &authority);
        assert_eq!((found.state, &parent(&found)["title"]), (State::Trusted, &json!("init_image.url")), "{number}: {found:?}");
    }
}

/// The `changes` of the edit in a file's manifest.
fn changes(path: &Path, authority: &Authority) -> Option<Value> {
    let found = credentials(path, "image/png", authority);
    assert_eq!(found.state, State::Trusted, "{:?}", found.failures);
    let active = found.manifests["active_manifest"].as_str().expect("a label");
    let assertions = found.manifests["manifests"][active]["assertions"].as_array().expect("assertions");
    let actions = assertions.iter().find(|assertion| assertion["label"] == "c2pa.actions.v2").expect("actions");
    let actions = actions["data"]["actions"].as_array().expect("a list");
    let edited = actions.iter().find(|action| action["action"] == "c2pa.edited").expect("an edit");
    edited.get("changes").cloned()
}

#[tokio::test]
async fn an_edit_within_a_mask_says_where_it_was_and_a_sheet_of_it_does_not() {
    let authority = Authority::good();
    let mut stage = Stage::signing(signing(&authority), Capabilities::Edit(vec![Mode::Fp8]), |workflow| {
        workflow.postprocess.create_comparison = true;
    })
    .await;
    let grey = |inside: fn(u32, u32) -> bool| {
        image::GrayImage::from_fn(96, 128, |x, y| image::Luma([if inside(x, y) { 255 } else { 0 }]))
    };
    grey(|x, _| x % 7 < 3).save(stage.bucket.path("person.png")).expect("written");
    grey(|x, y| (24..48).contains(&x) && (32..128).contains(&y)).save(stage.bucket.path("mask.png")).expect("written");
    let person = address("person.png");
    let body =
        json!({ "task": "tryon", "person": person, "garments": [person], "mask": address("mask.png"), "resolution": "480p" });
    let path = generated(&mut stage, "within", &body, json!({})).await;
    let said = changes(&path, &authority).expect("where it was changed");
    assert_eq!(said.as_array().map(Vec::len), Some(1), "{said}");
    let region = &said[0]["region"][0];
    let shape = &region["shape"];
    assert_eq!((&region["type"], &shape["type"], &shape["unit"]), (&json!("spatial"), &json!("rectangle"), &json!("percent")));
    let numbers = [&shape["origin"]["x"], &shape["origin"]["y"], &shape["width"], &shape["height"]];
    for (number, wanted) in numbers.into_iter().zip([25.0, 25.0, 25.0, 75.0]) {
        assert!((number.as_f64().expect("a number") - wanted).abs() < 0.5, "{shape}");
    }
    assert_eq!(changes(&stage.bucket.image("within", 1), &authority), None, "the person and the result side by side");
    let withheld = generated(&mut stage, "withheld", &body, json!({ "metadata": "none" })).await;
    assert_eq!(changes(&withheld, &authority), None);
    let mut anywhere = body;
    anywhere["mask"] = Value::Null;
    let anywhere = generated(&mut stage, "anywhere", &anywhere, json!({})).await;
    assert_eq!(changes(&anywhere, &authority), None);
}
