"""The first half of the papers, numbers 1 to 33."""

from tests.papers import Paper, advantages, losses, pairs, recorded

ROWS = "test_estimators_rows.py::test_worked_numbers_of_"
TOKENS = "test_estimators_tokens.py::test_worked_numbers_of_"

FIRST = [
    Paper(
        1, "GiGPO", "done", "authors' code (verl-agent, gigpo/core_gigpo.py); numbers: paper v3, appendix E.1, and run scripts",
        recipes=("gigpo",), uses=("advantage.gigpo_advantages",),
        tests=(
            *advantages("gigpo", "gigpo, std"), "test_advantage.py::test_rows_or_trajectories_are_counted",
            "test_anchor_similar.py::test_the_first_fitting_group_wins_not_the_best",
            "test_oracles.py::test_claimed_cases_agree[verl_agent_gigpo]",
        ),
    ),
    Paper(
        2, "CoPG", "done",
        "paper's abstract for the contrast of regularised rewards; the squared form is derived and has the same gradient",
        recipes=("copg", "rloo"),
        tests=(*pairs("copg"), "test_recipes_pairs.py::test_the_gradient_of_copg", *advantages("copg, leave-one-out")),
    ),
    Paper(
        3, "TON", "parts", "authors' code (kokolerk/TON, grpo_trainer.py)",
        "the reinforcement learning; thought dropout before it is preparation of supervised data, without a formula here",
        recipes=("ton",), tests=(*advantages("ton"), *recorded("block/ton", "recipes/ton")),
    ),
    Paper(
        4, "N-PG-IGT and HARPG", "out of scope", "",
        "changes the step in parameter space (extrapolation, Hessian-vector products), not the loss; the estimator it consumes is "
        "`recipes.reinforce`",
        paper="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies (arXiv 2302.01734)",
    ),
    Paper(
        5, "DisCO", "done",
        "authors' code (Optimization-AI/DisCO, core_algos.py); the value is the true one, where theirs has the gradient alone",
        recipes=("disco", "disco_b"), uses=("objective.GroupContrast", "objective.HingeKL"),
        tests=(*losses("disco", "disco_b"), "test_block_numbers.py::test_disco", *recorded("block/disco", "recipes/disco")),
    ),
    Paper(
        6, "Multi-objective GRPO", "parts",
        "paper's abstract: four scores become one; normalising first is the rule of GDPO and of DanceGRPO",
        "the weighted sum and the advantages of it; that the sum is linear, and its weights, are assumed",
        recipes=("multi_objective_grpo",), uses=("reward.weighted_sum", "advantage.normalised_sum"),
        tests=(*advantages("multi_objective_grpo", "multi_objective_grpo, each first"), "test_reward.py::test_sums"),
    ),
    Paper(
        7, "Action grouping", "out of scope", "", "planning with a model in a decomposed decision process; there is no loss of a policy",
        paper="Achieving Sample and Computational Efficient Reinforcement Learning by Action Space Reduction via Grouping "
        "(arXiv 2306.12981)",
    ),
    Paper(
        8, "Retroformer", "done", "authors' README and the formula as reviewers quote it; the released code binarises the difference",
        recipes=("retroformer",), uses=("reward.return_difference",),
        tests=(*advantages("retroformer"), "test_reward.py::test_penalties_and_differences"),
    ),
    Paper(
        9, "GROOVE", "out of scope", "",
        "the update rule is the output of a trained network, the contribution a curriculum; its numbers are advantages of "
        "`recipes.reinforce`",
        paper="Discovering General Reinforcement Learning Algorithms with Adversarial Environment Design (arXiv 2310.02782)",
    ),
    Paper(
        10, "OThink-MR1 (GRPO-D)", "done", "paper's equation of the schedule, which its prose contradicts",
        recipes=("grpo_d",), uses=("objective.Piecewise", "objective.Scheduled"),
        tests=("test_recipes.py::test_schedules", "test_block_settings.py::test_schedules"),
    ),
    Paper(
        11, "HNPG", "out of scope", "", "the novelty is how a critic is fitted; the package has no critics",
        paper="Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees (arXiv 2311.08384)",
    ),
    Paper(
        12, "SEED-GRPO", "parts", "paper, equations 5 and 6, section 4.1",
        "the entropy and the linear, exponential and focal families are the paper's; that linear means 1 - x is assumed, no source "
        "prints it",
        recipes=("seed_grpo",), uses=("advantage.semantic_entropy", "advantage.uncertainty_weights"),
        tests=(*advantages("seed_grpo"), ROWS + "semantic_entropy"),
    ),
    Paper(
        13, "P3O", "parts", "authors' blog and theorem 1 as a note quotes it",
        "the gradient is the paper's; how each form writes its clip, and 0.2, are assumed",
        recipes=("p3o", "p3o_separate"),
        tests=(*pairs("p3o"), *losses("p3o_separate"), "test_recipes_numbers.py::test_p3o_does_not_feel_a_shift_of_the_rewards"),
    ),
    Paper(
        14, "f-DPG", "done", "authors' code (naver/disco, disco/tuners/losses)",
        recipes=("f_dpg",), uses=("pairwise.pseudo_rewards", "pairwise.JensenShannon", "pairwise.ForwardKL", "pairwise.ChiSquare"),
        tests=(*losses("f_dpg"), "test_pairwise.py::test_transforms_by_hand", *recorded("pairwise/fdpg")),
    ),
    Paper(
        15, "Policy-guided diffusion", "out of scope", "",
        "trains a diffusion model of trajectories; its guidance is a gradient in actions inside a sampler",
        paper="Policy-Guided Diffusion (arXiv 2404.06356)",
    ),
    Paper(
        16, "Open-RS", "done", "authors' code (knoveleng/open-rs, rewards.py), which counts characters and does not clamp: clamp=False",
        recipes=("open_rs",), uses=("reward.cosine_length",),
        tests=(
            *advantages("open_rs, right", "open_rs, wrong"), "test_reward.py::test_cosine_length",
            *recorded("estimators/open_rs_rewards"),
        ),
    ),
    Paper(
        17, "MRA", "out of scope", "",
        "sets of latent policies trained with a bound on mutual information; nothing about tokens' log-probabilities",
        paper="Learning Meta Representations for Agents in Multi-Agent Reinforcement Learning (arXiv 2108.12988)",
    ),
    Paper(
        18, "ODICE", "out of scope", "",
        "learns values offline by projecting one gradient onto another; its policy step is weighted likelihood, as `recipes.tscac`",
        paper="ODICE: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update (arXiv 2402.00348)",
    ),
    Paper(
        19, "DNO", "done", "paper's text (practical form and algorithm 1)",
        recipes=("dno", "dno_soft"), uses=("pairwise.all_pairs",),
        tests=(*pairs("dno", "dno_soft"), "test_pairwise.py::test_pairs"),
    ),
    Paper(
        20, "Beyond the 80/20 rule", "done", "paper, equation 6, and the authors' code; TRL's other denominator has a recipe of its own",
        recipes=("high_entropy_tokens", "high_entropy_tokens_trl"), uses=("objective.TopEntropy",),
        tests=(
            *losses("high_entropy_tokens", "high_entropy_tokens_trl"),
            "test_block_numbers.py::test_top_entropy_divides_by_the_kept_or_by_all", "test_block_weightings.py::test_ranks_and_quantiles",
        ),
    ),
    Paper(
        21, "MDPO", "parts", "authors' code (manantomar/Mirror-Descent-Policy-Optimization, mdpo_on/mdpo.py)",
        "on-policy with the divergence estimated from the sampled tokens, and the closed form; not the exact divergence over all "
        "actions, the Tsallis "
        "variant or the off-policy form, and 1 / t_k is set by the caller",
        recipes=("mdpo", "mdpo_closed"),
        tests=(
            *losses("mdpo, surrogate"), "test_recipes_numbers.py::test_mdpo_estimates_the_exact_divergence",
            "test_block_numbers.py::test_mdpo_and_awr", *recorded("block/mdpo", "recipes/mdpo"),
        ),
    ),
    Paper(
        22, "Text2Grad", "parts", "authors' code (microsoft/Text2Grad, text2grad_trainer.py)",
        "span rewards to whitened advantages, and the clip whose batch may be skipped; not the alignment of a critique with its "
        "spans, the divergence over "
        "the whole vocabulary in the reward, or the length weight of one of its trainers",
        recipes=("text2grad",), uses=("objective.RatioGuard", "advantage.gae_advantages", "advantage.whiten"),
        tests=(
            *advantages("text2grad"), *losses("text2grad, a batch that drifted"),
            TOKENS + "gae", "test_block_weightings.py::test_ratio_guard",
        ),
    ),
    Paper(
        23, "Entropy mechanism", "done", "authors' code (PRIME-RL/Entropy-Mechanism-of-RL, core_algos.py)",
        recipes=("clip_cov", "kl_cov"), uses=("objective.CovarianceBand", "objective.CovarianceTop"),
        tests=(
            *losses("clip_cov", "kl_cov"), "test_block_numbers.py::test_clip_cov_and_kl_cov",
            *recorded("block/entropy_cov", "recipes/entropy_cov"),
        ),
    ),
    Paper(
        24, "Dec-POMFC", "out of scope", "", "control of a mean field; the learning is unchanged PPO on a lifted decision process",
        paper="Learning Decentralized Partially Observable Mean Field Control for Artificial Collective Behavior (arXiv 2307.06175)",
    ),
    Paper(
        25, "Aranyani", "out of scope", "",
        "supervised training of decision trees with a fairness gradient; its groups are of people, not of samples",
        paper="Enhancing Group Fairness in Online Settings Using Oblique Decision Forests (arXiv 2310.11401)",
    ),
    Paper(
        26, "PMOE", "out of scope", "", "an architecture: a mixture of Gaussian policies and the gradient of its router",
        paper="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning (arXiv 2104.09122)",
    ),
    Paper(
        27, "Nash-MD", "done", "TRL's trainer and the authors of EGPO; the mixture that is sampled from is the caller's",
        recipes=("nash_md",), uses=("reward.kl_rewards",),
        tests=(
            *losses("nash_md"), "test_block_numbers.py::test_nash_md_gradient",
            *recorded("pairwise/trl_experimental_preference", "pairwise/egpo"),
        ),
    ),
    Paper(
        28, "DanceGRPO", "parts", "authors' code (XueZeyue/DanceGRPO, train_grpo_flux.py and train_grpo_hunyuan.py)",
        "advantages, the loss of the kept steps and of several rewards; the Gaussian log-densities of denoising steps are the "
        "caller's, as is the clamp at 5",
        recipes=("dancegrpo",), uses=("objective.RandomFraction",),
        tests=(
            *advantages("dancegrpo"), *losses("dancegrpo"), "test_recipes_numbers.py::test_dancegrpo_of_two_rewards",
            *recorded("block/dancegrpo", "recipes/dancegrpo", "estimators/dancegrpo"),
        ),
    ),
    Paper(
        29, "SePPO", "parts", "equations 7 and 8 as reviews quote them; the released code has no training",
        "the loss and the turned sign; the errors of a diffusion model that stand for log-probabilities, and so the test that turns "
        "it, are the caller's",
        recipes=("seppo",), tests=pairs("seppo", "seppo, the sample wins"),
    ),
    Paper(
        30, "BESO", "out of scope", "", "behaviour cloning by score matching for robots; neither a reward nor a policy gradient",
        paper="Goal-Conditioned Imitation Learning using Score-based Diffusion Policies (arXiv 2304.02532)",
    ),
    Paper(
        31, "ConciseR", "parts", "authors' README for the stages and the gate",
        "both stages and the gate; the length reward 1 - length / maximum is assumed, no source prints the paper's",
        recipes=("concise_r", "concise_r_length"), uses=("reward.remaining_length", "reward.gated_bonus", "reward.all_of_group"),
        tests=(*advantages("concise_r_length", "concise_r_length, one wrong"), "test_reward.py::test_gates"),
    ),
    Paper(
        32, "KDRL", "done", "paper's section 3 as a re-implementation cites it; also AReaL's code; coefficients are of second hand",
        recipes=("kdrl", "kdrl_annealed"), uses=("objective.StepAnneal", "reward.any_of_group"),
        tests=(
            *losses("kdrl"), "test_recipes.py::test_schedules", "test_block_numbers.py::test_a_teacher_as_anchor",
            "test_reward.py::test_gates",
            *recorded("block/areal_loss"),
        ),
    ),
    Paper(
        33, "MaxMin-RLHF", "done", "paper's abstract and summary: the worst population of the batch",
        recipes=("maxmin",), uses=("reward.worst_population",),
        tests=(*advantages("maxmin"), "test_reward.py::test_the_worst_population"),
    ),
]  # fmt: skip
