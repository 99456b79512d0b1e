//! docs/models.md: the lines of what works next to a model, its upscalers and its segmenter, with their tests.

/// How a line of a list or table begins, and the tests of it: file and function.
pub(super) const COMPANIONS: &[(&str, &[&str])] = &[
    (
        "Networks are ESRGAN's",
        &[
            "E/parity/upscalers.rs parity_of_upscalers",
            "E/parity/upscalers.rs enlarged_images_are_spandrels",
            "E/parity/upscalers.rs parity_of_upscalers_in_half_precision",
        ],
    ),
    ("`RRDBNet` may have the names", &["E/parity/upscalers.rs parity_of_upscalers"]),
    ("A file that enlarges 1, 3 or 8", &["E/engine/upscalers.rs what_is_no_upscaler_is_refused_in_words"]),
    ("A `.pth` file is a pickle", &["E/engine/upscalers.rs a_pth_file_is_refused_with_how_to_convert_it"]),
    (
        "An image is cut into tiles",
        &[
            "E/engine/upscalers.rs tiles_that_see_all_that_decides_a_pixel_are_the_whole_image",
            "E/engine/upscalers.rs tiles_without_a_margin_show_that_a_margin_is_needed",
            "E/engine/upscalers.rs an_image_of_several_tiles_has_no_seams",
        ],
    ),
    ("Pixels that are no numbers", &["E/engine/upscalers.rs pixels_that_are_no_numbers_are_an_error"]),
    (
        "A pull brings an upscaler's file",
        &[
            "tests/it/models/upscalers.rs an_upscalers_file_is_brought_and_verified",
            "tests/it/doctor/machine.rs an_upscaler_that_is_absent_or_of_another_factor_is_found",
        ],
    ),
    ("It is a `SegformerForSemanticSegmentation`", &["E/parity/segmenter.rs parity_of_segmenters"]),
    ("Its labels are those of `id2label`", &["tests/it/auto_mask.rs a_function_knows_which_classes_a_garment_is_worn_over"]),
    (
        "Images are resized to a fixed",
        &["E/parity/segmenter.rs parity_of_segmenters", "E/engine/segmenters.rs what_is_no_segmenter_is_refused_in_words"],
    ),
    ("Scores are enlarged to the", &["E/parity/segmenter.rs labels_are_transformers_but_where_two_scores_tie"]),
    ("A network with another activation", &["E/engine/segmenters.rs what_is_no_segmenter_is_refused_in_words"]),
    (
        "Scores that are no numbers",
        &["E/engine/segmenters.rs an_image_without_pixels_and_scores_that_are_no_numbers_are_errors"],
    ),
    (
        "A pull brings the segmenter's files",
        &[
            "tests/it/models/segmenters.rs the_files_of_a_segmenter_are_brought_and_verified",
            "tests/it/doctor/machine.rs a_segmenter_that_is_absent_or_no_segmenter_is_found",
        ],
    ),
];
