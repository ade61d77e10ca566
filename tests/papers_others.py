"""Papers whose methods are recipes and that are none of the numbered ones."""

from tests.papers import Other, advantages, losses, pairs, recorded

ROWS = "test_estimators_rows.py::test_worked_numbers_of_"
CREDIT = "test_step_credit.py::test_worked_numbers_of_"
TOKENS = "test_estimators_tokens.py::test_worked_numbers_of_"
SINGLE = ("test_recipes_pairs.py::test_single_responses",)
WEIGHTS = ("test_block_numbers.py::test_one_token_with_a_constant_weight",)
ROLLOUT = ("test_block_weightings.py::test_rollout_correction_and_rejection",)
NAMED = "test_losses_by_name.py::test_"
TEACHER = ("test_block_numbers.py::test_a_teacher_as_anchor", *recorded("block/areal_loss"))

OTHERS = [
    Other("PPO", ("ppo",), (TOKENS + "gae", *recorded("block/verl_policy_loss"))),
    Other("REINFORCE", ("reinforce",), losses("reinforce")),
    Other("GRPO", ("grpo", "grpo_paper"), (*losses("grpo", "grpo_paper"), *recorded("block/trl_policy_loss"))),
    Other("Dr. GRPO", ("dr_grpo",), (*losses("dr_grpo"), *recorded("block/trl_policy_loss"))),
    Other("DAPO", ("dapo",), (*advantages("dapo, overlong"), "test_reward.py::test_soft_overlong", *recorded("block/trl_policy_loss"))),
    Other("HGPO", ("hgpo",), (ROWS + "nested_contexts", *recorded("estimators/hgpo"))),
    Other("GraphGPO", ("graphgpo",), (CREDIT + "graphgpo", *recorded("estimators/relax_graphgpo_gigpo"))),
    Other("G2PO", ("g2po",), (CREDIT + "g2po", *recorded("estimators/g2po"))),
    Other("MT-GRPO", ("mt_grpo",), recorded("estimators/mt_grpo_igpo")),
    Other("Dr. MAS", ("dr_mas",), ("test_estimators_rows.py::test_agents_of_a_task_apart", *recorded("estimators/drmas"))),
    Other("MaxRL", ("maxrl",), (*advantages("maxrl"), ROWS + "length_and_count", *recorded("estimators/prime_rl_advantage"))),
    Other("Pass@k training", ("pass_at_k",), (ROWS + "the_best_of_k",)),
    Other("GDPO", ("gdpo",), (ROWS + "several_rewards",)),
    Other(
        "RLOO", ("rloo", "rloo_clipped"), (*losses("rloo"), *advantages("rloo"), ROWS + "leave_one_out", *recorded("block/trl_policy_loss"))
    ),
    Other(
        "REINFORCE++",
        ("reinforce_plus_plus", "reinforce_plus_plus_baseline"),
        (
            *advantages("reinforce_plus_plus"),
            "test_estimators_tokens.py::test_reinforce_plus_plus_is_its_parts",
            *recorded("estimators/openrlhf_advantage"),
        ),
    ),
    Other("OPO", ("opo",), (*advantages("opo"), ROWS + "length_and_count", *recorded("estimators/verl_advantage"))),
    Other("GPG", ("gpg",), (*advantages("gpg"), ROWS + "length_and_count", *recorded("estimators/verl_advantage"))),
    Other("ReMax", ("remax",), (*advantages("remax"), TOKENS + "remax", *recorded("estimators/verl_advantage"))),
    Other(
        "GSPO",
        ("gspo", "gspo_token"),
        (
            *losses("gspo", "gspo_token", "gspo, advantages that differ", "gspo_token, advantages that differ"),
            *recorded("block/verl_policy_loss"),
        ),
    ),
    Other("GMPO", ("gmpo",), (*losses("gmpo"), "test_block_numbers.py::test_gmpo", *recorded("block/trl_policy_loss"))),
    Other("LUSPO", ("luspo",), (*losses("luspo"), *recorded("block/trl_policy_loss"))),
    Other("CISPO", ("cispo",), (*losses("cispo"), *WEIGHTS, *recorded("block/verl_policy_loss"))),
    Other("ScaleRL", ("cispo_absolute",), (*losses("cispo_absolute"), *WEIGHTS, *recorded("block/trl_policy_loss"))),
    Other("SAPO", ("sapo",), (*losses("sapo"), *recorded("block/trl_policy_loss"))),
    Other("VESPO", ("vespo",), (*losses("vespo"), *WEIGHTS, *recorded("block/trl_policy_loss"))),
    Other("TIS", ("tis", "tis_sequence"), (*losses("tis"), *ROLLOUT)),
    Other("IcePop", ("icepop", "icepop_sequence"), (*losses("icepop"), *ROLLOUT)),
    Other(
        "DeepSeek-V3.2",
        ("deepseek_v32", "opsm"),
        (
            "test_block_weightings.py::test_off_policy_sequences_lose_their_bad_actions",
            *losses("opsm"),
            *recorded("estimators/slime_opsm_kept_sets"),
        ),
    ),
    Other("prime-rl", ("prime_rl", "prime_rl_tv", "echo"), (*losses("prime_rl", "prime_rl_tv", "echo"), *recorded("block/prime_rl_loss"))),
    Other("TRL", ("bnpo",), (*losses("bnpo"), *recorded("block/trl_policy_loss"))),
    Other("rLLM", ("prpo",), (*advantages("prpo"), *recorded("estimators/rllm_art"))),
    Other(
        "REC",
        ("rec_one_side", "rec_two_side", "rec_ring", "rec_sequence"),
        (
            NAMED + "rec_drops_what_leaves_its_region",
            NAMED + "rec_of_a_group_of_one_is_zero",
            *recorded("block/trinity_loss", "estimators/trinity_advantage"),
        ),
    ),
    Other(
        "CHORD",
        ("chord_mu", "chord_phi"),
        (NAMED + "chord_moves_both_parts", NAMED + "mix_adds_an_experts_likelihood", *recorded("block/trinity_loss")),
    ),
    Other(
        "Clip_B, Clip_V",
        ("clip_b", "clip_v"),
        (
            NAMED + "clip_b_drops_bad_tokens_of_low_discriminator",
            NAMED + "clip_v_is_not_centred_and_drops_tokens_without_advantage",
            *recorded("estimators/trinity_advantage"),
        ),
    ),
    Other(
        "FIPO",
        ("fipo",),
        (
            NAMED + "fipo_weighs_a_token_by_what_follows",
            NAMED + "fipo_counts_the_positions_of_masked_tokens",
            *recorded("block/swift_losses"),
        ),
    ),
    Other("REAL", ("real",), (NAMED + "real_classifies_a_group", NAMED + "real_counts_the_groups_that_it_skips", *recorded("block/swift_losses"))),
    Other("ART", ("art_average",), (NAMED + "ratio_averages", NAMED + "a_bound_on_arts_ratio_hits_good_tokens_too", *recorded("block/rllm_art"))),
    Other("AsymRE", ("asymre",), (*losses("asymre"), *advantages("asymre"), *recorded("estimators/trinity_advantage"))),
    Other(
        "Trinity-RFT",
        ("opmd", "mix"),
        (
            *losses("opmd"),
            NAMED + "mix_adds_an_experts_likelihood",
            *advantages("opmd", "opmd, soft"),
            *recorded("block/trinity_loss", "estimators/trinity_advantage"),
        ),
    ),
    Other("M2PO", ("m2po",), ("test_block_weightings.py::test_second_moment", *recorded("block/areal_loss"))),
    Other(
        "DPPO",
        ("dppo_tv", "dppo_kl"),
        ("test_block_numbers.py::test_dppo_gates_by_how_far_the_probability_moved", *recorded("block/verl_policy_loss")),
    ),
    Other("TOPR", ("topr",), (*advantages("topr"), *WEIGHTS)),
    Other(
        "Kimi k1.5",
        ("kimi15",),
        (
            *advantages("kimi15"),
            "test_block_numbers.py::test_one_token_with_a_gradient_through_all_of_it",
        ),
    ),
    Other("DRO", ("dro",), ("test_block_numbers.py::test_one_token_with_a_gradient_through_all_of_it",)),
    Other("On-policy distillation", ("on_policy_distillation",), TEACHER),
    Other("AWR", ("awr",), losses("awr")),
    Other("DPO", ("dpo",), (*pairs("dpo"), *recorded("pairwise/trl_dpo"))),
    Other("Robust DPO", ("robust_dpo",), (*pairs("robust_dpo"), *recorded("pairwise/trl_dpo"))),
    Other("IPO", ("ipo",), (*pairs("ipo", "ipo, h 1.5"), *recorded("pairwise/trl_dpo", "pairwise/comal_inpo_ipo_dpo"))),
    Other("SimPO", ("simpo",), (*pairs("simpo"), *recorded("pairwise/trl_dpo"))),
    Other("SLiC", ("slic",), (*pairs("slic"), *recorded("pairwise/trl_dpo"))),
    Other("EXO", ("exo",), (*pairs("exo"), *recorded("pairwise/trl_dpo"))),
    Other("DiscoPOP", ("discopop",), (*pairs("discopop"), *recorded("pairwise/trl_dpo"))),
    Other("ORPO", ("orpo",), (*pairs("orpo"), *recorded("pairwise/trl_dpo"))),
    Other("AlphaPO", ("alpha_po",), pairs("alpha_po")),
    Other("KTO", ("kto",), (*SINGLE, "test_pairwise.py::test_kto_by_hand", *recorded("pairwise/trl_dpo"))),
    Other("BCO", ("bco",), (*SINGLE, *recorded("pairwise/trl_experimental_preference"))),
    Other("SPPO", ("sppo",), (*SINGLE, *recorded("pairwise/trl_dpo"))),
    Other("APO", ("apo_zero", "apo_down"), (*SINGLE, *pairs("apo_down"), *recorded("pairwise/trl_dpo"))),
    Other("NCA", ("nca_pair",), ("test_recipes_pairs.py::test_nca_of_a_pair", *recorded("pairwise/trl_dpo"))),
    Other(
        "AOT",
        ("aot", "aot_unpaired"),
        (*pairs("aot", "aot_unpaired"), "test_recipes_pairs.py::test_aot_depends_on_the_whole_batch", *recorded("pairwise/trl_dpo")),
    ),
    Other(
        "A*-PO",
        ("a_star_po",),
        ("test_recipes_pairs.py::test_a_star_po_regresses_on_the_optimal_advantage", ROWS + "soft_and_shifted_baselines", *recorded("pairwise/trl_a2po_tpo")),
    ),
    Other("TPO", ("tpo", "tpo_length"), (*pairs("tpo", "tpo_length"), *recorded("pairwise/trl_a2po_tpo"))),
]
