//! The segmenter of a manifest: which models may have one, and what of it is refused.

use super::{environment, parse};

#[test]
fn a_segmenter_of_a_manifest_is_for_try_ons_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |family: &str, segmenter: &str| {
        let modes = "modes: {fp8: {}}\nreference_px: 4096\n";
        let modes = if family == "qwen-image-edit" { modes } else { "" };
        let manifest = format!("family: {family}\ncheckpoint: edit\n{modes}segmenter: {segmenter}\n");
        std::fs::write(directory.path().join("edit.yaml"), manifest).expect("writes");
        let yaml = format!("model: {{name: edit, directory: {}}}", directory.path().display());
        let config = parse(&yaml, &[]).expect("a configuration");
        config.manifest(&environment(&[])).map(|manifest| manifest.segmenter).map_err(|error| error.to_string())
    };
    let good = "{directory: masks/clothes, licence: CC0-1.0}";
    let segmenter = read("qwen-image-edit", good).expect("a manifest").expect("its segmenter");
    assert_eq!(segmenter.directory, directory.path().join("masks/clothes"));
    assert_eq!(segmenter.licence.as_deref(), Some("CC0-1.0"));
    for (family, segmenter, words) in [
        ("stable-diffusion-1", good, "segmenter: is for family qwen-image-edit, which does try-ons"),
        ("qwen-image-edit", "{directory: masks, licence: ' '}", "segmenter: licence must name the licence of the weights"),
        ("qwen-image-edit", "{directory: /masks}", "must be relative to the manifest"),
        ("qwen-image-edit", "{path: masks}", "path"),
    ] {
        let error = read(family, segmenter).expect_err("refused");
        assert!(error.contains("edit.yaml") && error.contains(words), "{error}");
    }
}
