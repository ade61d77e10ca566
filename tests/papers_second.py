"""The second half of the papers, numbers 34 to 67."""

from tests.papers import Paper, advantages, losses, pairs, recorded

ROWS = "test_estimators_rows.py::test_worked_numbers_of_"
TOKENS = "test_estimators_tokens.py::test_worked_numbers_of_"

SECOND = [
    Paper(
        34, "PixelThink", "done", "authors' code (songw-zju/PixelThink, reward_score)",
        recipes=("pixelthink",), uses=("reward.difficulty_budget", "reward.soft_length", "reward.top_two_uncertainty"),
        tests=(*advantages("pixelthink"), "test_reward.py::test_pixelthink", *recorded("estimators/pixelthink_rewards")),
    ),
    Paper(
        35, "TSCAC", "parts", "notes of the paper for the structure; the display is derived from the constrained problem",
        "the second stage's loss for weights that are given; the display is assumed, the advantages come from critics, and the "
        "released code's softmax over "
        "the batch has no test",
        recipes=("tscac",), uses=("objective.TokenWeights",), tests=losses("tscac"),
    ),
    Paper(
        36, "UI-R1", "done", "authors' code (lll6gg/UI-R1, grpo_trainer.py and DAST_grpo_trainer.py)",
        recipes=("ui_r1", "ui_r1_e"), uses=("reward.weighted_sum", "reward.dast_length"),
        tests=(*advantages("ui_r1", "ui_r1_e"), "test_reward.py::test_dast", *recorded("estimators/ui_r1_rewards")),
    ),
    Paper(
        37, "ZO-RankSGD", "parts",
        "paper's directed graph of known comparisons; the released weights are one unit too large on ranked items",
        "the map from ranks to coefficients, as advantages; the optimiser perturbs parameters, which is no loss over log-probabilities",
        recipes=("rank",), uses=("advantage.rank_advantages",),
        tests=(*advantages("rank", "rank, the best alone"), ROWS + "ranks"),
    ),
    Paper(
        38, "Nash-MP", "parts", "paper's text for the two proximal steps; the sampled form is derived from them",
        "the loss of one half step from samples; the two steps of a game, whose loop is the caller's, have no test, and the baseline "
        "1/2 is assumed",
        recipes=("nash_mp",), uses=("reward.kl_rewards",), tests=losses("nash_mp"),
    ),
    Paper(
        39, "DR-PO", "done", "authors' code (Cornell-RL/drpo, src/tldr/drpo.py), in which padding counts",
        recipes=("dr_po",), uses=("advantage.gae_advantages", "advantage.whiten"),
        tests=(*losses("dr_po"), *recorded("estimators/drpo_dataset_reset")),
    ),
    Paper(
        40, "RPO", "done", "authors' code (YSLIU627/Regularized-Preference-Optimization, both branches)",
        recipes=("rpo", "rpo_openrlhf"), uses=("pairwise.NegativeLogLikelihood",),
        tests=(*pairs("rpo", "rpo, eta .2", "rpo_openrlhf"), *recorded("pairwise/rpo")),
    ),
    Paper(
        41, "Bayesian-network actor-critic", "out of scope", "",
        "a joint policy of agents and the graph that factorises it; given the conditionals, their product is "
        "`objective.SequenceProductRatio`",
        paper="Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent Reinforcement Learning (arXiv 2306.01920)",
    ),
    Paper(
        42, "TA-LPG", "out of scope", "",
        "the objective is the output of a meta-trained network; what it emits for each step enters `recipes.reinforce` as an advantage",
        tests=losses("reinforce"),
        paper="Discovering Temporally-Aware Reinforcement Learning Algorithms (arXiv 2402.05828)",
    ),
    Paper(
        43, "CPL", "done", "authors' code (jhejna/cpl, research/algs); the paper's discount is `token_weights`, the released code has none",
        recipes=("cpl", "cpl_bc", "cpl_kl"), uses=("pairwise.all_pairs", "pairwise.sequence_log_probs"),
        tests=(
            *pairs("cpl", "cpl, plain", "cpl, the other way", "cpl_bc", "cpl_kl"), "test_recipes_pairs.py::test_cpl_ranks",
            "test_pairwise_sequences.py::test_by_hand", *recorded("pairwise/cpl"),
        ),
    ),
    Paper(
        44, "PRDC", "out of scope", "",
        "deterministic continuous actions, learned Q and a search for neighbours in the data; there are no log-probabilities",
        paper="Policy Regularization with Dataset Constraint for Offline Reinforcement Learning (arXiv 2306.06569)",
    ),
    Paper(
        45, "Meta-ACL", "out of scope", "", "chooses tasks; it has no loss",
        paper="Meta Automatic Curriculum Learning (arXiv 2011.08463)",
    ),
    Paper(
        46, "gym-electric-motor", "out of scope", "", "a package of environments; it has no loss",
        paper="Towards a Reinforcement Learning Environment Toolbox for Intelligent Electric Motor Control (arXiv 1910.09434)",
    ),
    Paper(
        47, "Suboptimal, on-policy data", "done", "authors' code (Asap7772/understanding-rlhf, bandit_learner.py)",
        recipes=("best_of_n", "pref_ft", "awr", "reinforce", "dpo", "ipo"),
        tests=(
            *losses("awr", "best_of_n", "reinforce"), *pairs("dpo", "ipo, h 1.5"), *recorded("pairwise/understanding_rlhf"),
        ),
    ),
    Paper(
        48, "Reward-model ensembles", "done", "authors' code (tlc4418/llm_optimization, ppo_reward_functions.py and ensemble_rm.py)",
        recipes=("ensemble",), uses=("reward.ensemble_mean", "reward.ensemble_worst", "reward.ensemble_uncertainty"),
        tests=(*advantages("ensemble", "ensemble, best of n"), "test_reward.py::test_ensembles", *recorded("estimators/rm_ensembles")),
    ),
    Paper(
        49, "EGPO", "done", "authors' code (zhourunlong/EGPO, loss_funcs.py and extragradient_trainer.py)",
        recipes=("egpo", "online_ipo"),
        tests=(*pairs("egpo", "online_ipo"), "test_recipes_numbers.py::test_egpo_two_steps", *recorded("pairwise/egpo")),
    ),
    Paper(
        50, "Shared layers of agents", "out of scope", "", "an architecture whose layers tasks share; the loss is any other's",
        paper="Multi-Task Multi-Agent Shared Layers are Universal Cognition of Multi-Agent Coordination (arXiv 2312.15674)",
    ),
    Paper(
        51, "INPO", "done", "authors' code of COMAL (losses.py), which agrees with the paper's h_t; eta and the share are of second hand",
        recipes=("inpo",), tests=(*pairs("inpo", "ipo"), *recorded("pairwise/comal_inpo_ipo_dpo")),
    ),
    Paper(
        52, "NFT", "done", "authors' code (NVlabs/NFT, dp_actor.py), and the paper's equations 7 to 10 as a note has them",
        recipes=("nft", "nft_sequence"), uses=("advantage.group_moments",),
        tests=(
            *losses("nft, right", "nft, wrong", "nft, wrong and clamped", "nft, wrong with a floor of .1"),
            "test_recipes_numbers.py::test_nft_is_grpo_on_policy", "test_block_numbers.py::test_nft",
            *recorded("block/nft", "recipes/nft", "estimators/nft"),
        ),
    ),
    Paper(
        53, "GUI-R1", "done", "authors' code (ritzz-ai/GUI-R1, r1gui.py)",
        recipes=("gui_r1",), uses=("reward.weighted_sum",),
        tests=(*advantages("gui_r1"), "test_reward.py::test_sums", *recorded("estimators/gui_r1_rewards")),
    ),
    Paper(
        54, "HyPO", "parts", "paper's text for the two terms and the leave-one-out baseline",
        "both batches; the display of the second and both coefficients are assumed, the authors' code could not be had",
        recipes=("hypo",), uses=("advantage.leave_one_out_advantages",),
        tests=(*losses("hypo"), "test_recipes_numbers.py::test_hypo_adds_two_batches", ROWS + "leave_one_out"),
    ),
    Paper(
        55, "One-shot RLVR", "done", "authors' code (ypwang61/One-Shot-RLVR, core_algos.py and dp_actor.py), paper's section 3.1",
        recipes=("one_shot_rlvr",),
        tests=(*advantages("one_shot_rlvr"), *losses("one_shot_rlvr"), *recorded("block/one_shot_rlvr", "recipes/one_shot_rlvr")),
    ),
    Paper(
        56, "Pareto domain adaptation", "out of scope", "",
        "combines the parameter gradients of several losses of a classifier; no policy and no log-probabilities",
        paper="Pareto Domain Adaptation (arXiv 2112.04137)",
    ),
    Paper(
        57, "N2N", "parts", "authors' code (anubhavashok/N2N, rl.py) for the method",
        "REINFORCE with a running baseline, by the usual moving average; the released running mean of epochs differs, and the reward "
        "of a compressed network is "
        "the caller's",
        recipes=("running_baseline",), uses=("advantage.running_baseline_advantages",),
        tests=(*advantages("running_baseline"), ROWS + "a_running_baseline"),
    ),
    Paper(
        58, "PARL", "out of scope", "", "its gradient needs Hessian-vector products of the inner problem; the package is of first order",
        paper="PARL: A Unified Framework for Policy Alignment in Reinforcement Learning from Human Feedback (arXiv 2308.02585)",
    ),
    Paper(
        59, "SALSA", "parts", "paper's abstract; the average of the weights is a checkpoint that the caller makes",
        "PPO with the penalty to it in the reward; that the penalty is k1 in the reward, and 0.05, are assumed",
        recipes=("salsa",), uses=("reward.kl_rewards",),
        tests=(*advantages("salsa"), "test_reward.py::test_the_divergence_in_the_reward"),
    ),
    Paper(
        60, "A2PR", "out of scope", "",
        "continuous actions, two critics and a generative model of actions; there are no log-probabilities of tokens",
        paper="Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning (arXiv 2405.19909)",
    ),
    Paper(
        61, "PPO-max", "done", "authors' code (OpenLMLab/MOSS-RLHF, ppo_trainer.py)",
        recipes=("ppo_max",), uses=("reward.running_scale", "reward.kl_rewards", "advantage.whiten", "objective.EntropyTarget"),
        tests=(
            *advantages("ppo_max", "ppo_max, scaling"), *losses("ppo_max, entropy"), TOKENS + "gae", "test_reward.py::test_running_scale",
            *recorded("block/ppo_max", "estimators/ppo_max"),
        ),
    ),
    Paper(
        62, "PROPS", "parts", "authors' code (NicholasCorrado/PROPS, ppo_discrete.py)",
        "the released loss, and ROS; not the paper's divergence over all actions, which is commented out there",
        recipes=("props", "ros"),
        tests=(*losses("props", "ros"), "test_block_numbers.py::test_props", *recorded("block/props", "recipes/props")),
    ),
    Paper(
        63, "SPO", "done", "authors' code (AIFrameResearch/SPO) and the paper's sections 4 to 6; its regression variant is no policy loss",
        recipes=("spo_chain", "spo_tree"),
        uses=("advantage.low_probability_cuts", "advantage.segment_advantages", "advantage.tree_values", "advantage.tree_advantages"),
        tests=(
            *advantages("spo_chain", "spo_tree", "spo_tree, std"), *losses("spo_chain", "spo_chain, a batch that drifted"),
            ROWS + "trees", TOKENS + "segments",
            *recorded("block/spo", "recipes/spo", "estimators/spo"),
        ),
    ),
    Paper(
        64, "OTC", "done", "paper, equations 5 to 7 and section 4.1",
        recipes=("otc",), uses=("reward.tool_cost", "reward.fewest_calls"), tests=(*advantages("otc"), "test_reward.py::test_tool_cost"),
    ),
    Paper(
        65, "STAX", "out of scope", "", "an evolutionary search in a learned space of behaviours; there is no gradient of a policy",
        paper="Discovering and Exploiting Sparse Rewards in a Learned Behavior Space (arXiv 2111.01919)",
    ),
    Paper(
        66, "Vision-R1", "parts", "authors' README and three notes of the paper",
        "advantages and penalty; the reward (1 if format, answer and length are right, else 0) and the stages' caps are the "
        "caller's, without a function here",
        recipes=("vision_r1",), tests=(*advantages("vision_r1"), ROWS + "standardised_scores"),
    ),
    Paper(
        67, "MMaDA (UniGRPO)", "done", "authors' code (Gen-Verse/dLLM-RL, rl_mmada.py and rl_trado.py); the masks are the caller's",
        recipes=("unigrpo", "trado"), uses=("reward.weighted_sum",),
        tests=(
            *advantages("unigrpo"), *losses("unigrpo"), "test_block_numbers.py::test_uni_grpo",
            *recorded("block/unigrpo_dllm", "recipes/unigrpo_dllm", "estimators/unigrpo_dllm"),
        ),
    ),
]  # fmt: skip
