//! docs/models.md: the tests of what it says of FLUX.2 klein.

const EDITS: &str = "E/parity/flux2.rs an_edit_and_a_generation_come_one_after_the_other_on_one_engine";
const CHECKPOINTS: &str = "E/parity/flux2.rs a_flux2_checkpoint_that_lacks_something_is_refused_in_words";

/// As the lines of the rest of the page.
pub(super) const FLUX2: &[(&str, &[&str])] = &[
    (
        "Three hidden states of Qwen3 are the text",
        &["E/parity/flux2.rs parity_of_flux2_stages", "E/parity/flux2.rs flux2_refuses_by_name_what_it_does_not_read"],
    ),
    ("The noise levels follow the fit", &["E/parity/flux2.rs parity_of_flux2_schedules"]),
    (
        "It starts from no image",
        &[
            "tests/it/handler/modes.rs a_model_without_guidance_refuses_it_and_takes_loras",
            "E/parity/flux2.rs flux2_refuses_by_name_what_it_does_not_read",
        ],
    ),
    (
        "An edit has no `mode`",
        &[
            EDITS,
            "tests/it/edits.rs an_edit_of_a_model_without_modes_has_the_manifests_defaults",
            "tests/it/handler/edit.rs a_model_without_modes_does_edits_in_the_size_of_the_first_image",
        ],
    ),
    (
        "Images of an edit are shown",
        &[
            "E/parity/flux2.rs parity_of_flux2_references",
            "E/parity/flux2.rs parity_of_flux2_edits",
            "crates/engine/src/flow/references.rs images_get_the_sizes_that_diffusers_gives_them",
            "tests/it/handler/edit.rs a_model_without_modes_does_edits_in_the_size_of_the_first_image",
        ],
    ),
    ("An image with a side below 64", &[EDITS]),
    (
        "LoRAs have the spellings of diffusers, ComfyUI",
        &[
            "E/parity/flux2.rs parity_of_flux2_images",
            "E/parity/flux2.rs a_lora_of_another_family_is_refused_by_name_and_the_next_flux2_is_generated",
        ],
    ),
    ("FLUX.2-dev is refused", &[CHECKPOINTS]),
    ("klein 9B loads", &[CHECKPOINTS, "E/parity/flux2.rs parity_of_flux2_stages"]),
];
