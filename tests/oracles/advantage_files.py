"""The adapters of files about advantages and rewards. A file that also holds losses is answered by both its adapters in turn."""

from . import (
    areal_advantage,
    nemo_rl_advantage,
    openrlhf_advantage,
    paper_advantages,
    paper_rewards,
    prime_rl_advantage,
    roll_advantage,
    slime_advantage,
    trl_advantage,
)
from .adapter import Adapter, Answer, Unsupported
from .masked import REASON
from .tensors import Case

_TEXT = "this part reads text, and is taken as recorded; the reward functions here work on numbers"
_CRITIC = "the loss of a critic is the caller's"

_HOLES = "a list with holes, or of names; what is compared follows from it"
_READS_TEXT = "reads text; the reward functions here work on numbers"
_F1 = ("pizza near me|near me pizza", "[a b]|b", "piz|pizza", "|x", "a b c|a d e f", "Hello|hello world")
_SCRIPTS = ("grpo_json_action_coord", "grpo_json_action_coord-dast", "grpo_json_action_coord-nothink")
_FIRST_ROWS = dict.fromkeys(
    (
        "compute_rloo_outcome_advantage/by_agent=False/{}/2",
        "compute_reinforce_plus_plus_baseline_outcome_advantage/by_agent=False/{}/2",
        "episode_norm_reward/by_agent=False/{'remove_std': True}/2",
        "episode_norm_reward/by_agent=False/{'remove_std': False}/2",
    ),
    "rows of one trajectory differ, and the peer takes its statistics from whichever comes first; here from their mean",
)
_OUTSIDE_SUMS = {"whiten/nonzero_outside_mask": "the peer's mean sums over masked numbers too, and divides by the trained ones"}

ADAPTERS = {
    "areal_advantage": areal_advantage.ADAPTER,
    "nemo_rl_advantage": nemo_rl_advantage.ADAPTER,
    "openrlhf_advantage": openrlhf_advantage.ADAPTER,
    "prime_rl_advantage": prime_rl_advantage.ADAPTER,
    "roll_advantage": roll_advantage.ADAPTER,
    "slime_advantage": slime_advantage.ADAPTER,
    "trl_advantage": trl_advantage.ADAPTER,
    "drmas": Adapter(paper_advantages.drmas, {"advantages": REASON}, excluded=_FIRST_ROWS),
    "drpo_dataset_reset": Adapter(paper_advantages.drpo, outside=dict.fromkeys(("vf_loss", "loss", "grad_new_values"), _CRITIC)),
    "gui_r1_rewards": Adapter(
        paper_rewards.gui_r1,
        outside=dict.fromkeys(("format", "accuracy"), _TEXT),
        excluded={f"gui_r1_f1/{name}": _READS_TEXT for name in _F1},
    ),
    "hgpo": Adapter(paper_advantages.hgpo),
    "open_rs_rewards": Adapter(
        paper_rewards.open_rs,
        outside=dict.fromkeys(("accuracy", "format", "tag_count", "reasoning_steps"), _TEXT),
        excluded=dict.fromkeys(("repetition/n=2/p=-1.0", "repetition/n=3/p=-0.5", "repetition/n=1/p=-2.0"), _READS_TEXT),
    ),
    "pixelthink_rewards": Adapter(
        paper_rewards.pixelthink,
        outside=dict.fromkeys(("length", "reasoning_words", "thinking_format", "segmentation_format", "iou", "box_l1", "point_l1"), _TEXT)
        | {"budget": _HOLES},
    ),
    "rm_ensembles": Adapter(paper_rewards.rm_ensembles, outside={"answers_ascending": _HOLES}),
    "ui_r1_rewards": Adapter(paper_rewards.ui_r1, excluded={f"rewards/{name}": _READS_TEXT for name in _SCRIPTS}),
}

# Of files that hold losses too: the adapter of their advantages and rewards, Unsupported for the rest. `in_turn` joins two.
PARTS = {
    "dancegrpo": Adapter(paper_advantages.dancegrpo),
    "nft": Adapter(paper_advantages.nft),
    "ppo_max": Adapter(paper_rewards.ppo_max, {"whitened": REASON}, excluded=_OUTSIDE_SUMS),
    "spo": Adapter(paper_advantages.spo, {"advantages": REASON, "returns": REASON}, outside={"token_values": _HOLES}),
    "unigrpo_dllm": Adapter(paper_advantages.unigrpo),
}


def in_turn(first: Adapter, second: Adapter) -> Adapter:
    """The answer of the first adapter that has one, and what either says about the file."""

    def answer(case: Case) -> Answer:
        try:
            return first.answer(case)
        except Unsupported:
            return second.answer(case)

    joined = (first.looser | second.looser, first.notes + second.notes, first.excluded | second.excluded, first.outside | second.outside)
    return Adapter(answer, *joined)
