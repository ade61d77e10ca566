"""The files of recorded preference losses, and who answers them."""

from . import openrlhf_loss, preference_more, preference_papers, trl_preference
from .adapter import Adapter
from .advantage_files import in_turn

ADAPTERS = {
    **preference_papers.ADAPTERS,
    **trl_preference.ADAPTERS,
    "openrlhf_policy_loss": in_turn(openrlhf_loss.ADAPTER, Adapter(preference_more.openrlhf_dpo)),
    "text2grad": preference_more.TEXT2GRAD,
}
