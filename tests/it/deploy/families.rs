//! docs/models.md: each cell of the table of families follows from the code, or has a test.

use std::collections::BTreeSet;
use std::fs;

use atelier::config::{Config, Environment};
use atelier::job::task::{EditSidePx, SidePx};

use super::models_page::{has_test, root};

/// Parameters of the published checkpoints, counted by diffusers 0.42.1 and transformers over their configurations.
const SD_UNET: u64 = 859_520_964;
const SDXL_UNET: u64 = 2_567_463_684;
const SD_VAE: u64 = 83_653_863;
const CLIP_L: u64 = 123_060_480;
const CLIP_BIG_G: u64 = 694_659_840;
/// What stays of the transformer once the part that depends on time alone is worked out: `crates/engine/src/qwen/layout.rs`.
const QWEN_TRANSFORMER: u64 = 13_604_306_496;
const QWEN_LANGUAGE: u64 = 7_070_619_136;
const QWEN_VISION: u64 = 676_550_144;
const QWEN_VAE: u64 = 126_892_531;
const Z_IMAGE_TRANSFORMER: u64 = 6_154_908_736;
/// Qwen3-4B without its last layer, which is not read.
const QWEN3_LAYERS_READ: u64 = 3_921_537_280;
const FLUX_TRANSFORMER: u64 = 11_891_178_560;
const T5_ENCODER: u64 = 4_762_310_656;
/// FLUX.2 klein 4B's; what its text encoder keeps of Qwen3-4B, 27 of 36 layers; and its autoencoder, encoder and decoder.
const FLUX2_TRANSFORMER: u64 = 3_875_544_576;
const QWEN3_THREE_QUARTERS: u64 = 3_114_088_192;
const FLUX2_VAE: u64 = 84_046_115;
/// An `AutoencoderKL` with 16 channels, encoder and decoder.
const FLOW_VAE: u64 = 83_819_683;

const TEXT_REFUSALS: &str = "tests/it/handler/modes.rs a_model_of_one_sampler_refuses_what_it_does_not_read";
const EDIT_REFUSALS: &str = "tests/it/edits.rs every_refusal_of_an_edit_names_its_field_and_what_is_allowed";

const FLOW_REFUSALS: &str = "tests/it/handler/modes.rs a_model_without_guidance_refuses_it_and_takes_loras";
const KEEPS: &str = "tests/it/config/mod.rs the_contracts_defaults_are_in_force";

/// Of a family: its parameters, and the tests of LoRAs, image to image, inpainting, ControlNets, IP-Adapters, what is kept, and batches.
type Row = (&'static str, u64, [&'static str; 7]);

const ROWS: [Row; 7] = [
    (
        "stable-diffusion-1",
        SD_UNET + SD_VAE + CLIP_L,
        [
            "E/parity/loras.rs parity_of_loras",
            "E/parity/starts.rs parity_of_generations_from_a_image",
            "E/parity/variants.rs parity_of_inpainting_unets",
            "E/parity/controlnets.rs parity_of_images_with_controlnets",
            "E/parity/ip_adapters.rs parity_of_images_with_image_prompts",
            "E/engine/watching.rs the_last_loras_are_not_merged_again",
            "E/engine/batches.rs each_order_gets_the_images_that_it_gets_alone",
        ],
    ),
    (
        "stable-diffusion-xl",
        SDXL_UNET + SD_VAE + CLIP_L + CLIP_BIG_G,
        [
            "E/parity/sdxl_adapters.rs parity_of_sdxl_loras",
            "E/parity/sdxl.rs parity_of_sdxl_images",
            "E/parity/sdxl.rs parity_of_sdxl_images",
            "E/parity/controlnets.rs parity_of_images_with_controlnets",
            "E/parity/ip_adapters.rs parity_of_images_with_image_prompts",
            "E/engine/watching.rs the_last_loras_are_not_merged_again",
            "E/engine/sdxl.rs jobs_of_one_batch_are_the_images_they_are_alone",
        ],
    ),
    (
        "qwen-image",
        QWEN_TRANSFORMER + QWEN_LANGUAGE + QWEN_VAE,
        [
            TEXT_REFUSALS,
            TEXT_REFUSALS,
            TEXT_REFUSALS,
            TEXT_REFUSALS,
            TEXT_REFUSALS,
            KEEPS,
            "E/parity/qwen_family.rs images_of_one_request_have_noise_of_their_own",
        ],
    ),
    (
        "qwen-image-edit",
        QWEN_TRANSFORMER + QWEN_LANGUAGE + QWEN_VISION + QWEN_VAE,
        [
            EDIT_REFUSALS,
            "E/parity/qwen_family.rs parity_of_whole_edits",
            EDIT_REFUSALS,
            EDIT_REFUSALS,
            EDIT_REFUSALS,
            KEEPS,
            "E/engine/edits.rs an_edit_is_the_same_alone_again_and_beside_others",
        ],
    ),
    (
        "z-image",
        Z_IMAGE_TRANSFORMER + QWEN3_LAYERS_READ + FLOW_VAE,
        [
            "E/parity/z_image.rs parity_of_z_image_images",
            "E/parity/flow_starts.rs parity_of_z_image_from_an_image_and_under_a_mask",
            "E/parity/flow_starts.rs parity_of_z_image_from_an_image_and_under_a_mask",
            FLOW_REFUSALS,
            FLOW_REFUSALS,
            "E/parity/z_image.rs parity_of_z_image_images",
            "E/parity/z_image.rs images_of_a_z_image_batch_are_what_they_are_alone",
        ],
    ),
    (
        "flux",
        FLUX_TRANSFORMER + T5_ENCODER + CLIP_L + FLOW_VAE,
        [
            "E/parity/flux.rs parity_of_flux_images",
            "E/parity/flow_starts.rs parity_of_flux_from_an_image_and_under_a_mask",
            "E/parity/flow_starts.rs parity_of_flux_from_an_image_and_under_a_mask",
            FLOW_REFUSALS,
            FLOW_REFUSALS,
            "E/parity/flux.rs parity_of_flux_images",
            "E/parity/flux.rs images_of_a_flux_batch_are_what_they_are_alone",
        ],
    ),
    (
        "flux2",
        FLUX2_TRANSFORMER + QWEN3_THREE_QUARTERS + FLUX2_VAE,
        [
            "E/parity/flux2.rs parity_of_flux2_images",
            "E/parity/flux2.rs parity_of_flux2_edits",
            FLOW_REFUSALS,
            FLOW_REFUSALS,
            FLOW_REFUSALS,
            "E/parity/flux2.rs parity_of_flux2_images",
            "E/parity/flux2.rs images_of_a_flux2_batch_are_what_they_are_alone",
        ],
    ),
];

/// The cells of each row, by the family's name.
fn table() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/models.md")).expect("the page");
    let (_, after) = page.split_once("\n## Families\n").expect("the section");
    let (section, _) = after.split_once("\n## ").expect("its end");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.trim_end_matches(" |").split(" | ").map(|cell| cell.trim_matches('`').to_owned()).collect()).collect()
}

/// Of tables of words, which become whole.
const QWEN3_WORDS: u64 = 151_936 * 2_560;
const T5_WORDS: u64 = 32_128 * 4_096;

#[test]
fn the_table_of_gguf_files_follows_from_the_bits_of_their_blocks() {
    let page = fs::read_to_string(root().join("docs/models.md")).expect("the page");
    let parts = [
        ("Z-Image-Turbo's transformer", Z_IMAGE_TRANSFORMER, 0),
        ("its text encoder, Qwen3", QWEN3_LAYERS_READ, QWEN3_WORDS),
        ("FLUX.1-schnell's transformer", FLUX_TRANSFORMER, 0),
        ("its text encoder, T5", T5_ENCODER, T5_WORDS),
        ("FLUX.2 klein's transformer", FLUX2_TRANSFORMER, 0),
    ];
    for (part, weights, whole) in parts {
        let cells = [16.0, 8.5, 6.5625, 5.5, 4.5].map(|bits| {
            let gigabytes = ((weights - whole) as f64 * bits + whole as f64 * 16.0) / 8e9;
            format!("{gigabytes:.1} GB")
        });
        let cells = cells.join(" | ");
        assert!(page.contains(&format!("| {part} | {cells} |")), "{part}: {cells}");
    }
}

/// The licences of the manifests of a family.
fn licences(family: &str) -> BTreeSet<String> {
    let environment: Environment = std::iter::empty::<(String, String)>().collect();
    let yaml = format!("model: {{directory: {}}}", root().join("models").display());
    let config = Config::parse("config.yaml", &yaml, &environment).expect("a configuration");
    let names = config.model_names(&environment).expect("manifests").into_iter();
    let bundled = names.filter(|name| !name.as_str().starts_with("tiny-"));
    let manifests = bundled.map(|name| config.manifest_of(&name, &environment).expect("a manifest"));
    manifests.filter(|manifest| manifest.family.as_str() == family).filter_map(|manifest| manifest.licence).collect()
}

#[test]
fn every_cell_of_the_table_of_families_is_so() {
    let table = table();
    let families: Vec<&str> = table.iter().map(|cells| cells[0].as_str()).collect();
    assert_eq!(families, ROWS.map(|(family, ..)| family));
    for (cells, (family, parameters, tests)) in table.iter().zip(ROWS) {
        let [_, sizes, memory, licence, adapters, start, mask, control, prompt, _, _] = &cells[..] else {
            panic!("{family}: {cells:?}")
        };
        let is_unet = family.starts_with("stable-diffusion");
        let is_qwen = family.starts_with("qwen");
        let inpaints = is_unet || ["z-image", "flux"].contains(&family);
        let sides = if is_unet { SidePx::RANGE } else { EditSidePx::RANGE };
        let multiple = if is_unet { SidePx::MULTIPLE_OF } else { EditSidePx::MULTIPLE_OF };
        assert_eq!(*sizes, format!("{} to {}, multiples of {multiple}", sides.start(), sides.end()), "{family}");
        let gib = (parameters * 2) as f64 / f64::from(1 << 30);
        let dtype = if is_unet { "f16" } else { "bf16" };
        assert_eq!(*memory, format!("{gib:.1} GiB in {dtype}"), "{family}");
        let listed: BTreeSet<String> = licence.split(", ").map(str::to_owned).collect();
        assert_eq!(listed, licences(family), "{family}");
        let does = [adapters, start, mask, control, prompt].map(|cell| cell.starts_with("yes"));
        assert_eq!(
            does,
            [!is_qwen, inpaints || ["qwen-image-edit", "flux2"].contains(&family), inpaints, is_unet, is_unet],
            "{family}"
        );
        for test in tests {
            assert!(has_test(test), "{family}: there is no {test}");
        }
    }
}
