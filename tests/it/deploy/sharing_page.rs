//! docs/models.md: the lines of how models share a GPU, with their tests.

/// How a line of a list or table begins, and the tests of it: file and function.
pub(super) const SHARING: &[(&str, &[&str])] = &[
    ("Handlers on one GPU", &["src/host/sharing.rs handlers_on_one_device_share_it"]),
    (
        "At the start as many models",
        &["src/host/dispatch/swaps/tests.rs at_the_start_as_many_are_loaded_in_their_order_as_there_is_room_for"],
    ),
    (
        "A job for a model that is not loaded",
        &[
            "tests/it/host/sharing.rs of_three_models_with_room_for_two_the_least_recently_used_one_goes",
            "tests/it/host/sharing.rs a_model_is_loaded_only_when_the_process_before_it_is_gone_and_a_host_may_end_meanwhile",
        ],
    ),
    (
        "Jobs of loaded models go first",
        &[
            "tests/it/host/sharing.rs jobs_of_the_loaded_model_go_first_and_a_swap_leaves_images_as_they_are",
            "tests/it/host/sharing.rs a_job_that_has_waited_for_long_enough_comes_before_those_of_the_loaded_model",
        ],
    ),
    ("A model that was loaded", &["src/host/dispatch/swaps/tests.rs a_model_that_was_just_loaded_has_time_for_its_own_jobs"]),
    (
        "A model that cannot be loaded",
        &["tests/it/host/sharing.rs a_model_that_cannot_be_loaded_leaves_the_device_to_the_others"],
    ),
    (
        "`status` in `models` is",
        &["tests/it/host/sharing.rs a_model_is_loaded_only_when_the_process_before_it_is_gone_and_a_host_may_end_meanwhile"],
    ),
    (
        "`/infer` and OpenAI",
        &["tests/it/host/sharing.rs jobs_of_the_loaded_model_go_first_and_a_swap_leaves_images_as_they_are"],
    ),
    (
        "What an unloaded model",
        &["tests/it/host/sharing.rs jobs_of_the_loaded_model_go_first_and_a_swap_leaves_images_as_they_are"],
    ),
];
