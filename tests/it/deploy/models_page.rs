//! docs/models.md: every line that says what is read or refused has a test.

use std::fs;
use std::path::{Path, PathBuf};

use super::companions_page::COMPANIONS;
use super::flux2_page::FLUX2;
use super::gguf_page::GGUF;
use super::sharing_page::SHARING;

/// How a line of a list or table begins, and the tests of it: file and function.
const TESTS: &[(&str, &[&str])] = &[
    (
        "Weights are safetensors",
        &["E/engine/adapters.rs weights_in_any_format_of_floats_are_read", "E/engine/checkpoints.rs checkpoint_of_pickles"],
    ),
    (
        "A component is one file",
        &[
            "E/engine/layouts.rs shards_are_read_by_their_index",
            "E/engine/layouts.rs a_variant_is_read_where_there_is_no_plain_file",
        ],
    ),
    (
        "A checkpoint in one file",
        &[
            "E/engine/layouts.rs one_file_under_the_old_names_is_the_same_checkpoint",
            "E/engine/layouts.rs one_file_without_a_part_says_which",
        ],
    ),
    ("The checkpoint may be saved", &["E/engine/checkpoints.rs checkpoint_of_a_pipeline_around_the_same_weights"]),
    ("A UNet of nine input channels", &["E/parity/variants.rs parity_of_inpainting_unets"]),
    ("A UNet of eight input channels", &["E/parity/variants.rs parity_of_unets_that_edit_an_image"]),
    ("A UNet distilled", &["E/parity/variants.rs parity_of_models_distilled_over_the_guidance_scale"]),
    (
        "Words that a checkpoint's tokenizer adds",
        &[
            "E/engine/tokenizers.rs tokens_are_those_of_transformers_whichever_files_are_there",
            "E/engine/tokenizers.rs a_word_that_the_text_encoder_has_no_vector_of_is_refused_where_it_is_written",
        ],
    ),
    ("A `model_max_length` below", &["E/engine/tokenizers.rs settings_of_a_tokenizer_that_are_not_followed_are_refused"]),
    ("Other inputs are refused", &["E/engine/checkpoints.rs checkpoint_whose_unet_looks_at_other_things"]),
    (
        "A diffusers directory has `text_encoder_2`",
        &[
            "E/engine/sdxl.rs a_checkpoint_that_cannot_be_sdxl_is_refused_in_words",
            "tests/it/models/sdxl.rs a_family_that_is_not_the_checkpoints_is_refused",
        ],
    ),
    (
        "UNets with other numbers",
        &["E/parity/sdxl.rs parity_of_sdxl_images", "E/engine/sdxl.rs a_checkpoint_that_cannot_be_sdxl_is_refused_in_words"],
    ),
    ("One file of all weights", &["E/parity/sdxl_adapters.rs parity_of_one_sdxl_file"]),
    ("A job may say `original_size`", &["E/parity/sdxl.rs parity_of_sdxl_images"]),
    ("An empty negative prompt", &["E/parity/sdxl.rs parity_of_sdxl_texts"]),
    ("With f16 the VAE", &["E/engine/sdxl.rs the_vae_computes_in_f32_where_its_settings_ask_for_it"]),
    (
        "LoRAs change both text encoders",
        &[
            "E/parity/sdxl_adapters.rs parity_of_sdxl_loras",
            "E/engine/sdxl.rs a_lora_or_a_word_of_another_family_is_refused_by_its_name",
        ],
    ),
    ("A textual inversion holds", &["E/parity/sdxl_adapters.rs parity_of_sdxl_textual_inversions"]),
    (
        "`weighted` weights each",
        &[
            "E/parity/sdxl_adapters.rs parity_of_sdxl_weighted_prompts",
            "E/parity/sdxl_adapters.rs parity_of_sdxl_prompts_by_the_rules_of_lpw",
        ],
    ),
    ("Models of a few steps", &["E/parity/sdxl_adapters.rs parity_of_few_trailing_steps"]),
    (
        "`plain`, the default",
        &[
            "E/parity/stages.rs parity_of_stages",
            "E/parity/prompts.rs short_prompt_without_brackets_is_the_same_in_both_syntaxes",
        ],
    ),
    ("`weighted` |", &["E/parity/prompts.rs parity_of_prompts_as_in_automatic1111"]),
    ("`lpw` |", &["E/parity/prompts.rs parity_of_long_prompts_as_in_lpw"]),
    ("With `weighted`, a chunk ends", &["E/parity/prompts.rs parity_of_prompts_as_in_automatic1111"]),
    ("With `weighted`, `#` begins", &["crates/engine/src/sd/weighting.rs a_comment_reaches_to_the_end_of_its_line"]),
    ("A weight that is no number", &["crates/engine/src/sd/weighting.rs brackets_mean_what_they_mean_elsewhere"]),
    ("With `weighted`, prompt and negative", &["E/parity/prompts.rs parity_of_prompts_as_in_automatic1111"]),
    ("With `lpw`, the mean", &["E/parity/prompts.rs parity_of_weighted_prompts"]),
    ("`weighted` and `lpw` refuse", &["E/parity/prompts.rs syntax_of_another_program_is_refused_with_its_field"]),
    (
        "With `weighted`, a textual inversion",
        &["crates/engine/src/sd/chunks.rs weights_move_with_their_tokens_and_a_word_of_many_vectors_is_not_cut"],
    ),
    (
        "`beta_schedule`",
        &[
            "E/parity/samplers.rs parity_of_every_samplers_steps",
            "E/parity/schedules.rs a_setting_is_refused_only_by_the_schedulers_that_read_it",
        ],
    ),
    (
        "`prediction_type`",
        &[
            "E/parity/samplers.rs parity_of_every_samplers_steps",
            "E/parity/schedules.rs a_setting_is_refused_only_by_the_schedulers_that_read_it",
        ],
    ),
    (
        "`thresholding`",
        &[
            "E/parity/samplers.rs parity_of_every_samplers_steps",
            "E/parity/schedules.rs a_setting_is_refused_only_by_the_schedulers_that_read_it",
        ],
    ),
    (
        "`timestep_spacing`",
        &["E/parity/schedules.rs parity_of_schedules", "E/parity/samplers.rs parity_of_jobs_through_each_pipeline"],
    ),
    (
        "`use_karras_sigmas`",
        &[
            "E/parity/samplers.rs parity_of_every_samplers_steps",
            "E/parity/schedules.rs a_setting_is_refused_only_by_the_schedulers_that_read_it",
        ],
    ),
    ("`solver_order`", &["E/parity/samplers.rs parity_of_every_samplers_steps"]),
    ("`use_flow_sigmas`", &["E/parity/schedules.rs a_setting_is_refused_only_by_the_schedulers_that_read_it"]),
    (
        "LoRA, LoCon",
        &["E/parity/loras.rs parity_of_loras", "E/parity/adapter_files.rs parity_of_adapters_as_their_libraries_save_them"],
    ),
    ("DoRA", &["E/parity/loras.rs parity_of_adapters_of_every_kind"]),
    ("LoHa, LoKr", &["E/parity/loras.rs parity_of_adapters_of_every_kind"]),
    ("full differences", &["E/parity/loras.rs parity_of_adapters_of_every_kind"]),
    ("A key that matches nothing", &["E/engine/loras.rs bad_loras_are_refused_and_the_next_job_is_generated"]),
    ("One module under two names", &["E/engine/adapters.rs files_that_contradict_themselves_are_refused"]),
    ("OFT, BOFT", &["E/engine/loras.rs bad_loras_are_refused_and_the_next_job_is_generated"]),
    ("in the file: among its tensors", &["E/parity/adapter_files.rs parity_of_adapters_as_their_libraries_save_them"]),
    ("in the job:", &["tests/it/handler/loras.rs alpha_is_looked_for_beside_the_file_and_in_the_job"]),
    (
        "for files of PEFT's",
        &[
            "tests/it/handler/loras.rs alpha_is_looked_for_beside_the_file_and_in_the_job",
            "tests/it/handler/loras.rs alpha_is_looked_for_beside_a_file_of_a_web_server_too_unless_its_address_is_signed",
        ],
    ),
    ("A file of `save_pretrained`", &["E/parity/adapter_files.rs alpha_that_is_nowhere_or_twice_is_refused"]),
    ("An alpha that is given", &["E/parity/adapter_files.rs alpha_that_is_nowhere_or_twice_is_refused"]),
    ("Textual inversions that OneTrainer", &["E/engine/adapters.rs words_bundled_with_a_lora_are_words_of_the_prompt"]),
    ("formats of matrices", &["E/engine/adapters.rs one_content_in_any_spelling_order_and_format_is_one_image"]),
    ("safetensors file |", &["E/engine/adapters.rs hostile_files_are_refused_early"]),
    ("LoRA | twice", &["E/engine/adapters.rs hostile_files_are_refused_early"]),
    ("textual inversion |", &["E/engine/embeddings.rs bad_embeddings_are_refused_and_the_next_job_is_generated"]),
    ("weighted prompt |", &["E/engine/embeddings.rs prompt_of_too_many_tokens_is_refused"]),
    (
        "A directory has diffusers' `config.json`",
        &[
            "E/parity/controlnets.rs parity_of_what_a_controlnet_adds",
            "E/engine/controlnets.rs what_is_no_controlnet_of_the_model_is_refused_in_words",
        ],
    ),
    ("A ControlNet whose widths", &["E/engine/controlnets.rs what_is_no_controlnet_of_the_model_is_refused_in_words"]),
    (
        "Several add up",
        &[
            "E/parity/controlnets.rs parity_of_images_with_controlnets",
            "crates/engine/src/sd/control.rs a_control_takes_part_in_the_steps_that_lie_within_its_window",
        ],
    ),
    (
        "They go with image to image",
        &[
            "E/parity/controlnets.rs parity_of_images_with_controlnets",
            "E/engine/controlnets.rs a_control_that_cannot_be_is_refused_in_words",
        ],
    ),
    (
        "They are refused together with `step_cache`",
        &["tests/it/controls.rs every_refusal_of_controls_names_its_field_and_what_is_allowed"],
    ),
    ("A ControlNet sees both prompts", &["E/parity/controlnets.rs parity_of_images_with_controlnets"]),
    ("A ControlNet of scale 0", &["E/engine/controlnets.rs what_adds_nothing_changes_no_bit"]),
    (
        "`detect: canny` finds edges",
        &[
            "E/parity/canny.rs edges_are_those_of_opencv_byte_by_byte",
            "tests/it/handler/controls.rs a_control_image_arrives_in_the_jobs_size_and_edges_are_opencvs",
            "tests/it/handler/controls.rs what_no_controlnet_can_do_is_reported_once_with_what_there_is",
        ],
    ),
    ("A pull brings the files", &["tests/it/models/controlnets.rs a_controlnets_files_are_brought_verified_and_looked_at"]),
    (
        "The file is one `.safetensors`",
        &[
            "E/parity/ip_adapters.rs parity_of_images_with_image_prompts",
            "E/engine/ip_adapters.rs what_is_no_ip_adapter_of_the_model_is_refused_in_words",
            "tests/it/config/mod.rs the_nets_of_a_manifest_are_checked",
        ],
    ),
    ("FaceID, FaceID Plus and Full Face", &["E/engine/ip_adapters.rs what_is_no_ip_adapter_of_the_model_is_refused_in_words"]),
    (
        "The image encoder is a directory",
        &["E/engine/ip_adapters.rs an_image_encoder_that_is_not_the_adapters_is_refused_in_words"],
    ),
    ("An image is brought to", &["E/parity/ip_adapters.rs parity_of_what_an_ip_adapter_makes_of_an_image"]),
    ("Images are encoded once", &["E/parity/ip_adapters.rs parity_of_what_an_ip_adapter_makes_of_an_image"]),
    ("An adapter's images are seen", &["E/parity/ip_adapters.rs parity_of_images_with_image_prompts"]),
    (
        "Image prompts go with",
        &[
            "E/parity/ip_adapters.rs parity_of_images_with_image_prompts",
            "E/engine/ip_adapters.rs image_prompts_go_with_step_caching",
        ],
    ),
    ("An IP-Adapter of scale 0", &["E/engine/ip_adapters.rs what_adds_nothing_changes_no_bit"]),
    (
        "A pull of IP-Adapters",
        &["tests/it/models/ip_adapters.rs the_files_of_an_ip_adapter_are_brought_verified_and_looked_at"],
    ),
    ("a transformer in one file", &["E/parity/qwen.rs parity_of_fp8_weights"]),
    ("LoRAs over the checkpoint's", &["E/parity/qwen.rs parity_of_edit_loras"]),
    ("the checkpoint as it is", &["E/parity/qwen.rs parity_of_edit_stages"]),
    (
        "It has modes as a model",
        &[
            "E/parity/qwen_family.rs parity_of_whole_images_from_text",
            "tests/it/edits.rs a_job_from_text_has_the_defaults_of_its_mode",
        ],
    ),
    ("Its one scheduler is", &["tests/it/handler/modes.rs a_model_of_one_sampler_refuses_what_it_does_not_read"]),
    ("Width and height are multiples", &["tests/it/handler/modes.rs a_model_of_one_sampler_refuses_what_it_does_not_read"]),
    (
        "It does not read `lora`",
        &[
            "tests/it/handler/modes.rs a_model_of_one_sampler_refuses_what_it_does_not_read",
            "E/parity/qwen_family.rs a_model_from_text_refuses_by_name_what_it_does_not_read",
        ],
    ),
    ("A prompt has 1,024 tokens", &["E/parity/qwen_family.rs a_model_from_text_refuses_by_name_what_it_does_not_read"]),
    (
        "Its text encoder is Qwen3",
        &["E/parity/z_image.rs parity_of_z_image_stages", "E/parity/z_image.rs z_image_refuses_by_name_what_it_does_not_read"],
    ),
    (
        "A guidance scale above 1",
        &[
            "tests/it/handler/modes.rs a_model_without_guidance_refuses_it_and_takes_loras",
            "tests/it/config/mod.rs a_flow_without_guidance_has_none_in_its_manifest",
        ],
    ),
    ("Its scheduler is", &["tests/it/handler/modes.rs a_model_without_guidance_refuses_it_and_takes_loras"]),
    (
        "It does not read `embeddings`",
        &[
            "tests/it/handler/modes.rs a_model_without_guidance_refuses_it_and_takes_loras",
            "E/parity/z_image.rs z_image_refuses_by_name_what_it_does_not_read",
        ],
    ),
    (
        "A job may start from an image",
        &[
            "E/parity/flow_starts.rs parity_of_z_image_from_an_image_and_under_a_mask",
            "E/parity/flow_starts.rs parity_of_flux_from_an_image_and_under_a_mask",
        ],
    ),
    (
        "A VAE without its encoder's tensors",
        &["E/parity/flow_starts.rs what_no_image_can_be_made_from_is_refused_in_words_and_text_is_generated"],
    ),
    (
        "LoRAs change the transformer",
        &[
            "E/parity/z_image.rs parity_of_z_image_images",
            "E/parity/z_image.rs a_lora_that_adapts_a_layer_as_a_whole_and_in_parts_is_refused",
        ],
    ),
    (
        "`weights: FILE` in the manifest names the transformer",
        &[
            "E/parity/z_image.rs a_z_image_transformer_in_one_file_is_the_same",
            "E/parity/flux.rs a_flux_transformer_in_one_file_is_the_same",
            "E/parity/flux.rs a_file_that_is_no_flux_transformer_is_refused_in_words",
        ],
    ),
    (
        "It computes in bf16 on a GPU",
        &[
            "E/parity/z_image.rs z_image_refuses_by_name_what_it_does_not_read",
            "tests/it/config/mod.rs a_flow_without_guidance_has_none_in_its_manifest",
        ],
    ),
    (
        "With `engine.memory_budget_mib` the VAE",
        &["E/parity/z_image.rs under_a_budget_z_images_text_encoder_is_read_again_and_the_image_is_the_same"],
    ),
    (
        "It has two text encoders and two",
        &[
            "E/parity/flux.rs a_flux_checkpoint_that_lacks_something_is_refused_in_words",
            "E/parity/flux.rs parity_of_flux_stages",
            "E/parity/flux.rs flux_refuses_by_name_what_it_does_not_read",
        ],
    ),
    ("FLUX.1-dev is refused", &["E/parity/flux.rs a_flux_checkpoint_that_lacks_something_is_refused_in_words"]),
    (
        "LoRAs change transformer and CLIP",
        &[
            "E/parity/flux.rs parity_of_flux_images",
            "E/parity/flux.rs a_flux_lora_that_adapts_a_layer_as_a_whole_and_in_parts_is_refused",
        ],
    ),
    (
        "Stable Diffusion 1, 2, XL | `{",
        &["E/parity/step_cache.rs parity_of_deep_cache", "E/parity/step_cache.rs each_kind_of_model_takes_its_own"],
    ),
    (
        "Qwen-Image, Qwen-Image-Edit, Z-Image, FLUX.1 | `{",
        &[
            "E/parity/step_cache.rs parity_of_the_first_block_cache_of_flows",
            "E/parity/step_cache.rs parity_of_the_first_block_cache_of_edits",
        ],
    ),
    ("In bf16 it takes", &["crates/engine/src/qwen/layout.rs a_third_of_the_full_model_only_depends_on_time"]),
    ("A job goes to the model", &["tests/it/host/models.rs http_jobs_go_to_the_model_that_does_their_task"]),
    (
        "A job that none of them",
        &[
            "tests/it/host/models.rs messages_of_a_broker_go_to_the_model_that_does_their_task",
            "tests/it/host/models.rs a_job_that_is_done_is_reported_complete_though_no_model_does_it_any_more",
        ],
    ),
    ("The host is `hot`", &["tests/it/host/models.rs a_model_that_cannot_be_loaded_is_named_and_the_other_serves"]),
    ("A handler that ends", &["tests/it/host/models.rs a_killed_handler_of_one_model_leaves_the_other_serving"]),
    ("A queue does not say", &["tests/it/host/models.rs jobs_for_a_busy_model_do_not_keep_others_from_an_idle_one"]),
    (
        "`model.default_mode`, `model.modes`",
        &["tests/it/host/models.rs models_whose_jobs_lie_under_different_prefixes_are_refused"],
    ),
    ("`/test` and `/version`", &["tests/it/host/models.rs http_jobs_go_to_the_model_that_does_their_task"]),
];

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What follows the mark of an item, or the first bar of a row that is no header; from the section on what is read to that on numbers.
fn lines(page: &str) -> Vec<&str> {
    let (_, page) = page.split_once("## Stable Diffusion 1 and 2").expect("the section");
    let (page, _) = page.split_once("## How close the numbers are").expect("the section");
    let all: Vec<&str> = page.lines().collect();
    let mut found = Vec::new();
    for (index, line) in all.iter().enumerate() {
        let is_header = all.get(index + 1).is_some_and(|next| next.starts_with("|---"));
        let is_item = line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        if is_item || line.starts_with("- ") {
            found.push(line.split_once(' ').expect("a mark").1);
        } else if line.starts_with("| ") && !is_header {
            found.push(&line[2..]);
        }
    }
    found
}

pub(super) fn has_test(name: &str) -> bool {
    let (file, function) = name.split_once(' ').expect("a file and a function");
    let file = file.strip_prefix("E/").map_or_else(|| root().join(file), |file| Path::new("crates/engine/tests/it").join(file));
    let source = fs::read_to_string(root().join(file)).unwrap_or_default();
    source.contains(&format!("fn {function}("))
}

#[test]
fn every_line_of_what_is_read_or_refused_has_a_test() {
    let page = fs::read_to_string(root().join("docs/models.md")).expect("the page");
    let lines = lines(&page);
    assert!(lines.len() > 40, "{lines:?}");
    let all = || TESTS.iter().chain(COMPANIONS).chain(FLUX2).chain(GGUF).chain(SHARING);
    let untested = lines.iter().filter(|line| !all().any(|(beginning, _)| line.starts_with(beginning)));
    let untested: Vec<&&str> = untested.collect();
    assert!(untested.is_empty(), "lines of docs/models.md without a test: {untested:#?}");
    for (beginning, tests) in all() {
        let said = lines.iter().filter(|line| line.starts_with(beginning)).count();
        assert_eq!(said, 1, "{beginning} begins so many lines of docs/models.md");
        for test in *tests {
            assert!(has_test(test), "{beginning}: there is no {test}");
        }
    }
}
