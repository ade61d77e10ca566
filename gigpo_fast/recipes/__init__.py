"""Named compositions: a paper's loss and advantages by name, with its defaults.

    found = recipes.recipe("gspo", clip_high=5e-4)           # or recipes.gspo(clip_high=5e-4)
    A = found.advantages(scores, group)                      # one a row: advantage.to_tokens brings them to the tokens
    loss.linear_policy_loss(hidden, head, token_ids, A_tokens, mask, objective=found.objective, ...)

Where a paper and its authors' code differ, both have a name, and the docstring says which is the default and why.
"""


from collections.abc import Callable

from .actor_critic import dr_po, mdpo, mdpo_closed, ppo, ppo_max, props, ros, text2grad
from .base import PairwiseRecipe, Parts, PolicyRecipe, Recipe, Use, entry_of, names, recipe, register
from .contrast import disco, disco_b, real
from .diffusion import dancegrpo, trado, unigrpo
from .distillation import kdrl, kdrl_annealed, on_policy_distillation
from .entropy import clip_cov, high_entropy_tokens, high_entropy_tokens_trl, kl_cov
from .frameworks import art_average, asymre, bnpo, echo, opmd, opsm, prime_rl, prime_rl_tv, prpo
from .group_relative import (
    dapo,
    dr_grpo,
    dr_mas,
    gdpo,
    gigpo,
    grpo,
    grpo_d,
    grpo_paper,
    hgpo,
    maxrl,
    multi_objective_grpo,
    one_shot_rlvr,
    pass_at_k,
    seed_grpo,
)
from .mixed import chord_mu, chord_phi, mix
from .off_policy import deepseek_v32, dppo_kl, dppo_tv, dro, icepop, icepop_sequence, kimi15, m2po, tis, tis_sequence, topr
from .pairwise import (
    a_star_po,
    alpha_po,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco,
    copg,
    cpl,
    cpl_bc,
    cpl_kl,
    discopop,
    dno,
    dno_soft,
    dpo,
    egpo,
    exo,
    hypo,
    inpo,
    ipo,
    kto,
    nca_pair,
    online_ipo,
    orpo,
    p3o,
    robust_dpo,
    rpo,
    rpo_openrlhf,
    seppo,
    simpo,
    slic,
    sppo,
    tpo,
    tpo_length,
)
from .policy_gradient import gpg, nash_md, nash_mp, opo, reinforce, reinforce_plus_plus, reinforce_plus_plus_baseline, remax, rloo
from .rec import rec_one_side, rec_ring, rec_sequence, rec_two_side
from .segments import spo_chain, spo_tree
from .sequence import f_dpg, gmpo, gspo, gspo_token, luspo, p3o_separate, rloo_clipped
from .shaped import (
    concise_r,
    concise_r_length,
    ensemble,
    gui_r1,
    maxmin,
    open_rs,
    otc,
    pixelthink,
    rank,
    retroformer,
    running_baseline,
    salsa,
    ton,
    ui_r1,
    ui_r1_e,
    vision_r1,
)
from .soft_bounds import cispo, cispo_absolute, sapo, vespo
from .step_credit import g2po, graphgpo, mt_grpo
from .supervised import awr, best_of_n, nft, nft_sequence, pref_ft, tscac
from .token_weights import clip_b, clip_v, fipo

__all__ = [
    "PairwiseRecipe", "Parts", "PolicyRecipe", "Recipe", "Use", "a_star_po", "alpha_po", "aot", "aot_unpaired", "apo_down", "apo_zero",
    "art_average", "asymre", "awr", "bco", "best_of_n", "bnpo", "chord_mu", "chord_phi", "cispo", "cispo_absolute", "clip_b",
    "clip_cov", "clip_v", "concise_r", "concise_r_length", "copg", "cpl", "cpl_bc", "cpl_kl", "dancegrpo", "dapo", "deepseek_v32",
    "disco", "disco_b", "discopop", "dno", "dno_soft", "dpo", "dppo_kl", "dppo_tv", "dr_grpo", "dr_mas", "dr_po", "dro", "echo", "egpo",
    "ensemble", "exo", "f_dpg", "fipo", "g2po", "gdpo", "gigpo", "gmpo", "gpg", "graphgpo", "grpo", "grpo_d", "grpo_paper", "gspo",
    "gspo_token", "gui_r1", "hgpo", "high_entropy_tokens", "high_entropy_tokens_trl", "hypo", "icepop", "icepop_sequence", "inpo",
    "ipo", "kdrl", "kdrl_annealed", "kimi15", "kl_cov", "kto", "luspo", "m2po", "maxmin", "maxrl", "mdpo", "mdpo_closed", "mix",
    "mt_grpo", "multi_objective_grpo", "names", "nash_md", "nash_mp", "nca_pair", "nft", "nft_sequence", "on_policy_distillation",
    "one_shot_rlvr", "online_ipo", "open_rs", "opmd", "opo", "opsm", "orpo", "otc", "p3o", "p3o_separate", "pass_at_k", "pixelthink",
    "ppo", "ppo_max", "pref_ft", "prime_rl", "prime_rl_tv", "props", "prpo", "rank", "real", "rec_one_side", "rec_ring", "rec_sequence",
    "rec_two_side", "recipe", "register", "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "retroformer",
    "rloo", "rloo_clipped", "robust_dpo", "ros", "rpo", "rpo_openrlhf", "running_baseline", "salsa", "sapo", "seed_grpo", "seppo",
    "simpo", "slic", "spo_chain", "spo_tree", "sppo", "text2grad", "tis", "tis_sequence", "ton", "topr", "tpo", "tpo_length", "trado",
    "tscac", "ui_r1", "ui_r1_e", "unigrpo", "vespo", "vision_r1",
]  # fmt: skip


def __getattr__(name: str) -> Callable[..., Recipe]:
    if name not in names():  # those that others registered
        raise AttributeError(f"module 'gigpo_fast.recipes' has no attribute {name!r}; recipes.names() lists the recipes")
    return entry_of(name).made  # recipes.grpo(...) is recipe("grpo", ...)


def __dir__() -> list[str]:
    return sorted({*globals(), *names()})
