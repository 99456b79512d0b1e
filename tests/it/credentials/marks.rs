//! The mark that a model made an image: in every format, for every task, at every level of metadata.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use atelier::image_file::notes;
use atelier::job::capabilities::Capabilities;
use atelier::job::{Job, MetadataLevel};
use serde_json::{Value, json};

use super::{FORMATS, generated, tasks, with_inputs};
use crate::requests::contract;
use crate::servers::left_out;
use crate::stage::Stage;

const SOURCES: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";

fn digital_source(path: &Path) -> String {
    let notes = notes::read(&std::fs::read(path).expect("an image")).expect("its notes");
    let xmp = notes.xmp.expect("XMP");
    let value = xmp.split_once("<Iptc4xmpExt:DigitalSourceType>").and_then(|(_, rest)| rest.split_once('<'));
    value.expect("the mark").0.to_owned()
}

#[tokio::test]
async fn every_image_says_that_a_model_made_it() {
    for (task, capabilities, body, source) in tasks() {
        let mut stage = Stage::with(capabilities, |_| ()).await;
        with_inputs(&stage);
        for (format, _) in FORMATS {
            for level in ["full", "minimal", "none"] {
                let output = json!({ "format": format, "metadata": level });
                let path = generated(&mut stage, &format!("{task}-{format}-{level}"), &body, output).await;
                assert_eq!(digital_source(&path), format!("{SOURCES}{source}"), "{task} {format} {level}");
                image::open(&path).unwrap_or_else(|error| panic!("{task} {format} {level}: {error}"));
            }
        }
    }
}

/// All bytes of the file, as a text that can be searched.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).expect("an image")).into_owned()
}

#[tokio::test]
async fn a_job_decides_what_else_its_images_say_and_the_configuration_where_it_does_not() {
    let secret = json!({ "prompt": "a very private mug", "width": 64, "height": 64 });
    for (configured, given, is_told) in [
        (MetadataLevel::Full, Value::Null, true),
        (MetadataLevel::Full, json!("minimal"), false),
        (MetadataLevel::Full, json!("none"), false),
        (MetadataLevel::Minimal, Value::Null, false),
        (MetadataLevel::None, Value::Null, false),
        (MetadataLevel::None, json!("full"), true),
    ] {
        let mut stage = Stage::with(Capabilities::Generate, |workflow| workflow.encode.metadata = configured).await;
        let path = generated(&mut stage, "job", &secret, json!({ "metadata": given })).await;
        assert_eq!(text(&path).contains("private mug"), is_told, "{configured:?} {given}");
        let notes = notes::read(&std::fs::read(&path).expect("an image")).expect("its notes");
        let is_none = given == "none" || given.is_null() && configured == MetadataLevel::None;
        assert_eq!(notes.texts.is_empty(), is_none, "{configured:?} {given}: {:?}", notes.texts);
    }
}

#[tokio::test]
async fn the_record_is_named_where_images_are_public_and_their_metadata_not_withheld() {
    let body = json!({ "prompt": "a mug", "width": 64, "height": 64 });
    for (base, level, is_named) in [
        (Some("https://cdn.example/a&b/"), "full", true),
        (Some("https://cdn.example/a&b/"), "minimal", true),
        (Some("https://cdn.example/a&b/"), "none", false),
        (None, "full", false),
    ] {
        let mut stage = Stage::public(base).await;
        for (format, _) in FORMATS {
            let id = format!("{format}-{level}");
            let path = generated(&mut stage, &id, &body, json!({ "format": format, "metadata": level })).await;
            let link = format!("<rdf:li>https://cdn.example/a&amp;b/generations/{id}/result.json</rdf:li>");
            assert_eq!(text(&path).contains(&link), is_named, "{base:?} {id}");
            assert_eq!(text(&path).contains("result.json"), is_named, "{base:?} {id}");
        }
    }
}

/// Another implementation reads what it is to say.
#[tokio::test]
async fn exiftool_reads_the_mark() {
    if Command::new("exiftool").arg("-ver").output().is_err() {
        return left_out("the mark read by exiftool", "install libimage-exiftool-perl");
    }
    let mut stage = Stage::public(Some("https://cdn.example")).await;
    let body = json!({ "prompt": "a mug", "width": 64, "height": 64 });
    for (format, content_type) in FORMATS {
        let path = generated(&mut stage, format, &body, json!({ "format": format })).await;
        let arguments = ["-json", "-G1", "-validate", "-warning", "-all"];
        let said = Command::new("exiftool").args(arguments).arg(&path).output().expect("exiftool");
        let said: Value = serde_json::from_slice(&said.stdout).expect("JSON");
        let said = &said[0];
        assert_eq!(said["XMP-iptcExt:DigitalSourceType"], format!("{SOURCES}trainedAlgorithmicMedia"), "{said:#}");
        assert_eq!(said["XMP-xmp:CreatorTool"], concat!("atelier ", env!("CARGO_PKG_VERSION")), "{said:#}");
        assert_eq!(said["XMP-dc:Relation"], format!("https://cdn.example/generations/{format}/result.json"), "{said:#}");
        assert_eq!((&said["File:MIMEType"], &said["ExifTool:Warning"]), (&json!(content_type), &Value::Null), "{said:#}");
    }
}

/// What decides the bytes of the files is part of the request; a job that says nothing of it is the one that it always was.
#[test]
fn the_level_of_metadata_is_read_and_part_of_the_request() {
    let parse = |output: Value| {
        let body = json!({ "job_id": "a", "prompt": "p", "output": output });
        Job::from_json(body.to_string().as_bytes(), &contract())
    };
    let jobs = [json!({}), json!({ "metadata": "full" }), json!({ "metadata": "minimal" }), json!({ "metadata": "none" })];
    let jobs = jobs.map(|output| parse(output).expect("a good body"));
    let levels = jobs.each_ref().map(|job| job.output.metadata);
    assert_eq!(levels, [None, Some(MetadataLevel::Full), Some(MetadataLevel::Minimal), Some(MetadataLevel::None)]);
    let fingerprints: BTreeSet<String> = jobs.iter().map(|job| job.fingerprint.clone()).collect();
    assert_eq!(fingerprints.len(), 4, "each is another request");
    assert_eq!(parse(json!({ "metadata": null })).expect("a good body").fingerprint, jobs[0].fingerprint);
    for (given, shown) in [(json!("some"), "\"some\""), (json!(false), "false")] {
        let refused = parse(json!({ "metadata": given })).expect_err("must be refused").error.to_string();
        assert_eq!(refused, format!("output.metadata: must be one of full, minimal, none or null, got {shown}"));
    }
}
