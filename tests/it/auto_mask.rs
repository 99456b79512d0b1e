//! The field `auto_mask` of a try-on: what it may say, what of it makes another request, and what a function answers.

use std::collections::BTreeSet;

use atelier::job::Job;
use atelier::job::segmenter::Segmenter;
use serde_json::{Value, json};

use crate::edits::edit;
use crate::requests::{parse, refused, tryon, with};

/// The labels of ATR, as published networks spell them.
const ATR: &str = "Background Hat Hair Sunglasses Upper-clothes Skirt Pants Dress Belt Left-shoe Right-shoe Face Left-leg Right-leg Left-arm Right-arm Bag Scarf";

fn masked(auto_mask: Value) -> Value {
    tryon("auto_mask", auto_mask)
}

fn job(body: &Value) -> Job {
    parse(body).unwrap_or_else(|refusal| panic!("{body}: {}", refusal.error))
}

fn segmenter(labels: &str) -> Segmenter {
    Segmenter { classes: labels.split(' ').map(str::to_owned).collect(), licence: None }
}

#[test]
fn every_refusal_of_a_mask_that_is_to_be_made_names_its_field_and_what_is_allowed() {
    let mut both = masked(json!({}));
    both["mask"] = json!("s3://b/m");
    let many: Vec<String> = (0..33).map(|number| format!("class-{number}")).collect();
    refused([
        (masked(json!(true)), "auto_mask", "must be an object"),
        (masked(json!([])), "auto_mask", "must be an object"),
        (
            masked(json!({ "garment": "arm" })),
            "auto_mask.garment",
            "must be one of upper, lower, full, shoes or null, got \"arm\"",
        ),
        (masked(json!({ "classes": [] })), "auto_mask.classes", "must be 1 to 32 names of classes, got 0"),
        (masked(json!({ "classes": many })), "auto_mask.classes", "must be 1 to 32 names of classes, got 33"),
        (masked(json!({ "classes": [""] })), "auto_mask.classes", "1 to 64 characters, got one of 0"),
        (masked(json!({ "classes": ["Dress"], "garment": "upper" })), "auto_mask.classes", "leave garment and limbs out"),
        (masked(json!({ "classes": ["Dress"], "limbs": false })), "auto_mask.classes", "leave garment and limbs out"),
        (masked(json!({ "dilate_px": -1 })), "auto_mask.dilate_px", "a whole number from 0 to 256, got -1"),
        (masked(json!({ "dilate_px": 257 })), "auto_mask.dilate_px", "a whole number from 0 to 256, got 257"),
        (masked(json!({ "feather": 3 })), "auto_mask.feather", "is not a field"),
        (both, "auto_mask", "cannot be given together with mask"),
        // Neither has a person.
        (with("auto_mask", json!({})), "auto_mask", "is not a field of this job"),
        (edit("auto_mask", json!({})), "auto_mask", "is not a field of this job"),
    ]);
}

#[test]
fn all_of_it_makes_another_request_and_nothing_is_nothing() {
    let own = job(&tryon("seed", json!(42))).fingerprint;
    assert_eq!(job(&masked(Value::Null)).fingerprint, own);
    let different = [
        json!({}),
        json!({ "garment": "upper" }),
        json!({ "garment": "upper", "limbs": true }),
        json!({ "garment": "upper", "dilate_px": 4 }),
        json!({ "classes": ["Dress"] }),
        json!({ "classes": ["Dress", "Hat"] }),
    ];
    let fingerprints: BTreeSet<String> = different.into_iter().map(|auto_mask| job(&masked(auto_mask)).fingerprint).collect();
    assert!(fingerprints.len() == 6 && !fingerprints.contains(&own));
    let said = masked(json!({ "garment": "full", "limbs": false, "classes": null, "dilate_px": null }));
    assert!(fingerprints.contains(&job(&said).fingerprint), "what is said and what is left out are one request");
}

#[test]
fn a_function_knows_which_classes_a_garment_is_worn_over() {
    let atr = segmenter(ATR);
    let chosen = |segmenter: &Segmenter, auto_mask: Value| {
        let job = job(&masked(auto_mask));
        let atelier::job::task::Task::TryOn(tryon) = &job.task else { panic!("no try-on") };
        segmenter.check(&job)?;
        let places = segmenter.of(tryon.auto_mask.as_ref().expect("it is there"))?;
        Ok::<_, atelier::job::outcome::JobError>(
            places.into_iter().map(|place| segmenter.classes[place].clone()).collect::<Vec<_>>().join(" "),
        )
    };
    for (auto_mask, classes) in [
        (json!({}), "Upper-clothes Skirt Pants Dress Belt"),
        (json!({ "garment": "upper" }), "Upper-clothes Dress"),
        (json!({ "garment": "upper", "limbs": true }), "Upper-clothes Dress Left-arm Right-arm"),
        (json!({ "garment": "lower", "limbs": true }), "Skirt Pants Dress Left-leg Right-leg"),
        (
            json!({ "garment": "full", "limbs": true }),
            "Upper-clothes Skirt Pants Dress Belt Left-leg Right-leg Left-arm Right-arm",
        ),
        (json!({ "garment": "shoes", "limbs": true }), "Left-shoe Right-shoe"),
        (json!({ "classes": ["upper clothes", "SCARF", "left_arm", "Scarf"] }), "Upper-clothes Left-arm Scarf"),
    ] {
        assert_eq!(chosen(&atr, auto_mask.clone()).unwrap(), classes, "{auto_mask}, in the segmenter's order");
    }
    let says = |segmenter: &Segmenter, auto_mask: Value| chosen(segmenter, auto_mask).expect_err("it is refused").to_string();
    let other = segmenter("nothing trousers coat");
    assert_eq!(chosen(&other, json!({ "garment": "full" })).unwrap(), "trousers coat");
    assert_eq!(
        says(&other, json!({ "garment": "shoes" })),
        "auto_mask.garment: has no class among this function's segmenter's, nothing, trousers, coat: name those that may be changed in \
         auto_mask.classes"
    );
    assert_eq!(
        says(&other, json!({ "classes": ["coat", "hat"] })),
        "auto_mask.classes: must be of this function's segmenter's, nothing, trousers, coat, got \"hat\""
    );
    let none = Segmenter::default();
    assert_eq!(says(&none, json!({})), "auto_mask: this function's model has no segmenter: send a mask, or leave it out");
    assert!(none.check(&job(&tryon("seed", json!(1)))).is_ok() && none.check(&job(&with("seed", json!(1)))).is_ok());
}
