"""Which test guards against which known fault of fused losses: the pitfalls seen in other kernels, by number, and what must not happen.

Each entry names tests as file::function, or says in one sentence why there is none. `tests/test_pitfalls.py` holds the table against the
tests that exist.
"""

from typing import NamedTuple


class Pitfall(NamedTuple):
    """One known way to be wrong."""

    fault: str
    tests: tuple[str, ...] = ()
    reason: str = ""  # why no test, or what the tests cannot show


PITFALLS = {
    1: Pitfall(
        "offsets past 2^31 elements wrap around",
        (
            "test_kernels_compile.py::test_every_configuration_compiles_as_designed",
            "test_rows_limits.py::test_offsets_past_two_to_the_31_elements",
            "test_gpu_rows.py::test_more_than_two_to_the_31_logits",
        ),
    ),
    2: Pitfall(
        "a grid axis above 65,535 fails or does nothing",
        (
            "test_kernels_compile.py::test_one_program_a_row_on_the_first_grid_axis",
            "test_gpu_rows.py::test_more_rows_than_one_grid_axis_may_have",
        ),
    ),
    3: Pitfall(
        "every new length compiles again",
        (
            "test_kernels_compile.py::test_new_lengths_compile_nothing_new",
            "test_compile.py::test_new_lengths_and_coefficients_do_not_recompile",
        ),
    ),
    4: Pitfall(
        "-inf, NaN and large common offsets in a row; garbage behind a mask",
        (
            "test_kernels_interpreter.py::test_nan_and_infinity_show_wherever_they_stand",
            "test_kernels_interpreter.py::test_an_offset_common_to_the_row_costs_the_log_prob_nothing",
            "test_rows_native.py::test_infinite_and_missing_values",
            "test_faults_loss.py::test_F11_all_negative_logits",
            "test_faults_loss.py::test_F12_a_large_common_offset_keeps_the_difference",
            "test_linear_relations.py::test_untrained_tokens_change_no_bit",
        ),
    ),
    5: Pitfall(
        "vocabularies that are no multiple of a tile; padded columns in maxima and entropies",
        ("test_kernels_interpreter.py::test_every_shape_of_row", "test_logprob.py::test_vocabulary_order_and_padding_do_not_matter"),
    ),
    6: Pitfall(
        "token ids that are negative, out of range, int32 or misaligned",
        (
            "test_kernels_interpreter.py::test_a_token_outside_the_vocabulary",
            "test_faults_loss.py::test_F15_an_id_outside_the_vocabulary",
            "test_logprob.py::test_int32_token_ids_and_repeatability",
            "test_gpu_rows.py::test_strided_and_unaligned_rows",
        ),
    ),
    7: Pitfall(
        "nothing trained: division by zero, a graph that falls apart",
        (
            "test_faults_loss.py::test_F07_nothing_trained_is_loss_zero_attached_to_the_graph",
            "test_logprob.py::test_no_tokens",
            "test_kernels_interpreter.py::test_no_rows",
        ),
    ),
    8: Pitfall(
        "1 - p of a nearly certain token has no digits left",
        (
            "test_logprob.py::test_a_nearly_certain_token_keeps_its_gradient",
            "test_kernels_interpreter.py::test_a_certain_token_keeps_its_gradient",
            "test_rows_native.py::test_target_entry_keeps_its_digits_where_p_is_near_one",
        ),
    ),
    9: Pitfall(
        "upstream gradients that are not one scalar, not contiguous, absent or in low precision",
        (
            "test_faults_autograd.py::test_F44_every_token_has_its_own_upstream_gradient",
            "test_faults_autograd.py::test_F45_strided_upstream_gradients",
            "test_logprob.py::test_upstream_gradients_of_any_strides",
            "test_logprob_upstream.py::test_any_upstream_gradient",
        ),
    ),
    10: Pitfall(
        "a gradient written over logits that others still need",
        (
            "test_faults_autograd.py::test_F47_a_second_backward_is_the_first_and_saves_stay_whole",
            "test_kernels_interpreter.py::test_in_place_equals_out_of_place",
            "test_kernels_compile.py::test_every_configuration_compiles_as_designed",
        ),
    ),
    11: Pitfall(
        "a second backward is wrong, a backward through the backward silently 0",
        (
            "test_linear_relations.py::test_a_second_backward_repeats_the_first",
            "test_compile.py::test_gradients_of_gradients_are_refused",
        ),
    ),
    12: Pitfall(
        "tuning runs a kernel many times over its own input", ("test_kernels_autotune.py::test_trials_touch_no_tensor_of_the_caller",)
    ),
    13: Pitfall(
        "sums over chunks or slabs in low precision",
        (
            "test_linear_relations.py::test_the_error_does_not_grow_with_the_number_of_chunks",
            "test_passes.py::test_weight_grad_out_receives_the_unrounded_gradient",
            "test_logprob_upstream.py::test_low_precision_gradients_are_rounded_once",
        ),
    ),
    14: Pitfall("operands widened to float32 to be safe", ("test_gemm.py::test_low_precision_operands_stay_low_on_a_gpu",)),
    15: Pitfall(
        "forward and backward, or two passes of one policy, see different logits",
        (
            "test_faults_loss.py::test_F13_forward_and_backward_see_the_same_logits",
            "test_faults_loss.py::test_F14_log_probs_are_float32_and_do_not_depend_on_the_batch",
            "test_passes.py::test_invariant_log_probs_and_d_hidden_do_not_depend_on_other_rows",
        ),
    ),
    16: Pitfall(
        "copies of a formula drift apart; results depend on chunks, packing or order",
        (
            "test_linear_policy_loss.py::test_value_and_gradients",
            "test_linear_policy_loss.py::test_chunks_agree",
            "test_layouts.py::test_equal_loss_and_gradients",
            "test_linear_relations.py::test_row_order_and_repetition",
            "test_linear_relations.py::test_micro_batches_add_up",
        ),
    ),
    17: Pitfall(
        "ratios that overflow, clips that look at one sign only",
        (
            "test_faults_loss.py::test_F01_stale_tokens_do_not_overflow",
            "test_faults_loss.py::test_F02_an_infinite_ratio_under_the_mask_is_no_nan",
            "test_faults_autograd.py::test_F50_dual_clip_is_for_bad_actions_and_above_one",
            "test_kernels_interpreter_clip.py::test_ties_share_the_gradient_as_in_torch",
        ),
    ),
    18: Pitfall(
        "inputs that are views",
        (
            "test_linear_relations.py::test_any_strides",
            "test_logprob.py::test_any_strides",
            "test_kernels_interpreter.py::test_strided_rows_leave_their_neighbours_alone",
        ),
    ),
    19: Pitfall(
        "autocast: mixed dtypes, gradients decided by a cast copy",
        (
            "test_linear_relations.py::test_autocast",
            "test_faults_autograd.py::test_F46_copies_inside_do_not_cut_the_graph",
            "test_faults_autograd.py::test_F52_mixed_dtypes_run_under_autocast_and_are_an_error_without",
        ),
    ),
    20: Pitfall(
        "graph breaks; Python floats that become float64 inside kernels",
        (
            "test_compile.py::test_one_graph",
            "test_compile.py::test_inductor",
            "test_kernels_compile.py::test_every_configuration_compiles_as_designed",
        ),
    ),
    21: Pitfall(
        "a sharded head mixed with plain tensors",
        (
            "test_vocabulary_parallel.py::test_a_dtensor_head",
            "test_passes.py::test_weight_grad_out_of_a_reduced_parameter_is_refused",
            "test_fsdp.py::test_every_rank_has_the_loss_and_the_gradients_of_one_process",
            "test_fsdp.py::test_wrapping_that_would_train_another_model_is_refused_on_every_rank",
        ),
    ),
    22: Pitfall(
        "a gradient buffer for a frozen head",
        (
            "test_faults_autograd.py::test_F53_a_frozen_head_has_no_gradient_buffer",
            "test_memory.py::test_a_frozen_head_needs_no_buffer_and_no_grad_none_at_all",
        ),
    ),
    23: Pitfall(
        "entropy without gradient, in low precision, or polluted by masked rows",
        (
            "test_logprob.py::test_from_hidden_states",
            "test_linear_policy_loss.py::test_value_and_gradients",
            "test_gpu_rows.py::test_values_and_gradients",
        ),
    ),
    24: Pitfall(
        "tests that cannot fail",
        (
            "test_linear_policy_loss.py::test_logits_rounded_to_the_input_dtype_are_caught",
            "test_linear_policy_loss.py::test_dlogits_of_rounded_logits_are_caught",
            "test_logprob.py::test_rounded_logits_are_caught",
            "test_kernels_compile.py::test_the_gates_see_a_spill_and_a_narrow_load",
            "test_memory.py::test_a_chunk_that_is_too_large_is_caught",
        ),
    ),
    25: Pitfall(
        "benchmarks of forwards alone, of wrong answers, of hidden memory", ("test_bench.py::test_a_wrong_peer_is_neither_timed_nor_kept",)
    ),
    26: Pitfall(
        "several GPUs in one process",
        ("test_gpu_rows.py::test_tensors_on_another_device_than_the_current_one", "test_gpu_loss.py::test_two_devices_in_two_threads"),
        "both need two GPUs and have not run yet",
    ),
}

FAULTS = {
    54: Pitfall("offsets past 2^31 elements", PITFALLS[1].tests),
    55: Pitfall("a grid axis above 65,535", PITFALLS[2].tests),
    56: Pitfall(
        "entropy materialises temporaries as wide as the vocabulary", ("test_memory.py::test_token_log_probs_adds_only_the_gradient",)
    ),
    57: Pitfall(
        "chunks along the wrong dimension; a ragged last chunk",
        ("test_linear_policy_loss.py::test_chunks_agree", "test_logprob.py::test_slabs_of_the_vocabulary"),
    ),
    16: Pitfall(
        "a mean over each micro-batch, then a mean of means",
        ("test_partition.py::test_any_split_sums_to_one_call", "frameworks/test_verl_loss.py::test_micro_batches_sum_to_the_whole"),
    ),
    17: Pitfall(
        "divided by the generation batch instead of the optimiser step", ("frameworks/test_trl.py::test_every_option_of_the_loss",)
    ),
    18: Pitfall("divided by the accumulation steps twice", ("frameworks/test_trl.py::test_equals_the_stock_trainer",)),
    19: Pitfall(
        "one branch forgets the normaliser",
        ("test_partition.py::test_any_split_sums_to_one_call", "frameworks/test_verl_loss.py::test_equals_the_registered_loss"),
    ),
    32: Pitfall("words of tools and environments are trained", ("frameworks/test_trl.py::test_words_of_the_environment_are_not_trained",)),
    38: Pitfall(
        "the sampler's importance ratio is dropped in the fused path",
        ("frameworks/test_trl.py::test_the_samplers_own_probabilities", "frameworks/test_verl_loss.py::test_equals_the_registered_loss"),
    ),
    39: Pitfall(
        "softcap or logit scale dropped, or in another order",
        (
            "test_integrations_transformers.py::test_equals_the_models_own_logits",
            "frameworks/test_trl.py::test_what_a_model_does_to_its_logits",
            "frameworks/test_verl_head.py::test_what_a_model_does_to_its_logits",
        ),
    ),
    40: Pitfall(
        "temperature on one side only",
        ("frameworks/test_trl.py::test_every_option_of_the_loss", "test_logprob.py::test_from_hidden_states"),
    ),
    41: Pitfall(
        "an adapter on the head is ignored",
        (
            "test_integrations_transformers.py::test_what_is_refused_and_by_which_name",
            "frameworks/test_trl_gigpo.py::test_models_that_are_refused",
        ),
    ),
    42: Pitfall(
        "a subclass's loss or the router's loss is bypassed",
        (
            "test_integrations_transformers.py::test_the_auxiliary_loss_is_the_models_own",
            "frameworks/test_trl_gigpo.py::test_clashes_name_both_sides",
        ),
    ),
    43: Pitfall(
        "two fused switches at once",
        ("frameworks/test_trl_gigpo.py::test_clashes_name_both_sides", "frameworks/test_verl_head.py::test_refusals"),
    ),
    58: Pitfall("an empty shard of a head reaches the kernel", ("test_bad_inputs.py::test_heads",)),
    59: Pitfall(
        "a DTensor mixed with a tensor",
        (
            "test_vocabulary_parallel.py::test_a_dtensor_head",
            "test_fsdp.py::test_wrapping_that_would_train_another_model_is_refused_on_every_rank",
        ),
    ),
    60: Pitfall("padding columns in the softmax", PITFALLS[5].tests),
}
IN_TEST_NAMES = (*range(1, 16), *range(20, 32), *range(33, 38), *range(44, 54))  # faults whose tests are called test_Fnn_...
ELSEWHERE = {
    61: "graph breaks: pitfall 20",
    62: "numbers that change with tuning: pitfall 12",
    63: "faults of a compiler: `python -m gigpo_fast doctor --selftest` on the user's machine",
    64: "fused is slower than eager at small sizes: the README's limits",
}
