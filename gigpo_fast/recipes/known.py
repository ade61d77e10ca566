"""The names of the package's own recipes as types, so that checkers and editors know which objective a name has."""

from typing import Literal

PolicyName = Literal[
    "art_average", "asymre", "awr", "best_of_n", "bnpo", "chord_mu", "chord_phi", "cispo", "cispo_absolute", "clip_b", "clip_cov",
    "clip_v", "concise_r", "concise_r_length", "dancegrpo", "dapo", "deepseek_v32", "disco", "disco_b", "dppo_kl", "dppo_tv", "dr_grpo",
    "dr_mas", "dr_po", "dro", "echo", "ensemble", "f_dpg", "fipo", "g2po", "gdpo", "gigpo", "gmpo", "gpg", "graphgpo", "grpo", "grpo_d",
    "grpo_paper", "gspo", "gspo_token", "gui_r1", "hgpo", "high_entropy_tokens", "high_entropy_tokens_trl", "icepop", "icepop_sequence",
    "kdrl", "kdrl_annealed", "kimi15", "kl_cov", "luspo", "m2po", "maxmin", "maxrl", "mdpo", "mdpo_closed", "mix", "mt_grpo",
    "multi_objective_grpo", "nash_md", "nash_mp", "nft", "nft_sequence", "on_policy_distillation", "one_shot_rlvr", "open_rs", "opmd",
    "opo", "opsm", "otc", "p3o_separate", "pass_at_k", "pixelthink", "ppo", "ppo_max", "pref_ft", "prime_rl", "prime_rl_tv", "props",
    "prpo", "rank", "real", "rec_one_side", "rec_ring", "rec_sequence", "rec_two_side", "reinforce", "reinforce_plus_plus",
    "reinforce_plus_plus_baseline", "remax", "retroformer", "rloo", "rloo_clipped", "ros", "running_baseline", "salsa", "sapo",
    "seed_grpo", "spo_chain", "spo_tree", "text2grad", "tis", "tis_sequence", "ton", "topr", "trado", "tscac", "ui_r1", "ui_r1_e",
    "unigrpo", "vespo", "vision_r1",
]  # fmt: skip
PairwiseName = Literal[
    "a_star_po", "alpha_po", "aot", "aot_unpaired", "apo_down", "apo_zero", "bco", "copg", "cpl", "cpl_bc", "cpl_kl", "discopop", "dno",
    "dno_soft", "dpo", "egpo", "exo", "hypo", "inpo", "ipo", "kto", "nca_pair", "online_ipo", "orpo", "p3o", "robust_dpo", "rpo",
    "rpo_openrlhf", "seppo", "simpo", "slic", "sppo", "tpo", "tpo_length",
]  # fmt: skip
