//! docs/models.md: the tests of what it says of GGUF files.

const TABLE: &str = "tests/it/deploy/families.rs the_table_of_gguf_files_follows_from_the_bits_of_their_blocks";

/// As the lines of the rest of the page.
pub(super) const GGUF: &[(&str, &[&str])] = &[
    (
        "Q8_0, Q6_K, Q5_K",
        &[
            "E/parity/gguf.rs blocks_are_what_gguf_and_candle_make_of_them_bit_by_bit",
            "E/engine/gguf.rs broken_gguf_files_are_refused_in_words",
        ],
    ),
    (
        "Names in a transformer are those of the first release, as ComfyUI",
        &[
            "E/parity/gguf.rs parity_of_flux_in_blocks",
            "E/parity/gguf.rs parity_of_z_image_in_blocks",
            "E/parity/gguf.rs parity_of_flux2_in_blocks",
        ],
    ),
    (
        "Weights of layers stay in their blocks",
        &[
            "E/parity/gguf.rs weights_stay_in_blocks",
            "crates/engine/src/device/gguf.rs a_gpu_makes_whole_what_a_cpu_does_bit_by_bit",
        ],
    ),
    (
        "LoRAs are laid beside the blocks",
        &["E/parity/gguf.rs a_lora_that_is_more_than_two_matrices_is_refused_over_blocks_by_the_name_of_its_layer"],
    ),
    (
        "A file of another model is refused before",
        &[
            "E/parity/gguf.rs a_gguf_of_another_model_is_refused_in_words",
            "E/parity/gguf.rs a_gguf_of_another_text_encoder_is_refused_in_words",
        ],
    ),
    (
        "`atelier models pull`, `verify` and `doctor` treat both",
        &["tests/it/models/gguf.rs gguf_files_are_brought_in_place_of_transformer_and_encoder"],
    ),
    ("Z-Image-Turbo's transformer |", &[TABLE]),
    ("its text encoder, Qwen3 |", &[TABLE]),
    ("FLUX.1-schnell's transformer |", &[TABLE]),
    ("its text encoder, T5 |", &[TABLE]),
    ("FLUX.2 klein's transformer |", &[TABLE]),
];
