//! The README's first command.

use std::process::Command;

#[test]
fn the_demo_generates_stores_and_tells() {
    let out = tempfile::tempdir().unwrap();
    let demo = Command::new(env!("CARGO_BIN_EXE_atelier"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["demo", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let (shown, log) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{shown}\n{log}");
    let generated =
        ["demo-plain-0", "demo-lora-0", "demo-four-0", "demo-four-1", "demo-four-2", "demo-four-3"].map(|name| (name, 128));
    // A result, and next to the person whom it was made of.
    let tried_on = [("demo-tryon-0", 96), ("demo-tryon-1", 2 * 96)];
    for (name, width) in generated.into_iter().chain(tried_on).chain([("contact-sheet", 128)]) {
        let image =
            image::open(out.path().join(format!("{name}.png"))).unwrap_or_else(|error| panic!("{name}: {error}\n{shown}"));
        assert!(image.width() >= width, "{name}");
    }
    for job in ["demo-plain", "demo-lora", "demo-four", "demo-tryon"] {
        assert!(out.path().join(format!("s3/atelier-demo/generations/{job}/result.json")).exists(), "{job}");
        assert!(shown.contains(&format!("webhook POST /api/webhooks/inference/complete  {job}")), "{job}: {shown}");
    }
    assert!(shown.contains("8 images and contact-sheet.png"), "{shown}");
}
