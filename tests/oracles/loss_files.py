"""The files of recorded policy losses, and who answers them. A file that also holds advantages is answered by both its adapters in turn."""

from . import (
    advantage_files,
    areal_loss,
    nemo_rl_loss,
    openrlhf_loss,
    paper_losses,
    prime_rl_loss,
    roll_loss,
    slime_loss,
    trl_importance,
    trl_loss,
)

ADAPTERS = {
    "areal_loss": areal_loss.ADAPTER,
    "nemo_rl_loss": nemo_rl_loss.ADAPTER,
    "openrlhf_policy_loss": openrlhf_loss.ADAPTER,
    "prime_rl_loss": prime_rl_loss.ADAPTER,
    "roll_loss": roll_loss.ADAPTER,
    "slime_loss": slime_loss.ADAPTER,
    "trl_importance_ratio": trl_importance.ADAPTER,
    "trl_policy_loss": trl_loss.ADAPTER,
    **paper_losses.ADAPTERS,
    **{name: advantage_files.in_turn(part, advantage_files.PARTS[name]) for name, part in paper_losses.PARTS.items()},
}
