//! IP-Adapters of a manifest: their files are brought and verified; `atelier doctor`'s part is in doctor/machine.rs.

use super::companion::{Companion, pins};
use super::files_of;
use crate::servers::hub::REPOSITORY;

const PLUS: &str = "ip-adapter/sd15/plus.safetensors";
const ENCODER: &str = "ip-adapter/image_encoder/model.safetensors";

#[tokio::test]
async fn the_files_of_an_ip_adapter_are_brought_verified_and_looked_at() {
    // One repository for all: what nobody names of it stays there.
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/ip_adapters"));
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let adapters = "ip_adapters:\n  - {name: plain, weights: ip-adapter/sd15/plain.safetensors, image_encoder: ip-adapter/image_encoder}\n  \
                    - {name: plus, weights: ip-adapter/sd15/plus.safetensors, image_encoder: ip-adapter/image_encoder}\n";
    let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  ip-adapter:\n    hub: {REPOSITORY}\n");
    let companion = Companion::new("sd15", format!("{manifest}\n{adapters}{sources}"), &files).await;

    let (pulled, text) = companion.run("pull").await;
    assert!(
        pulled && companion.has(PLUS) && companion.has("ip-adapter/sd15/plain.safetensors") && companion.has(ENCODER),
        "{text}"
    );
    assert!(companion.has("ip-adapter/image_encoder/config.json"), "{text}");
    assert!(!companion.has("ip-adapter/sdxl/plain.safetensors") && !companion.has("ip-adapter/cases.json"), "{text}");

    let (right, said) = companion.run("verify").await;
    assert!(!right && said.contains("plus.safetensors: there, and the manifest has no checksum"), "{said}");
    companion.pin(pins(&text, "ip-adapter"));
    let text = companion.verify_damaged(ENCODER).await;
    assert!(!text.contains("plus.safetensors: differs"), "{text}");
}
