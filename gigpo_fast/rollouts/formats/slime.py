"""slime's --save-debug-rollout-data: samples of one text each; which of its tokens the model wrote stands in a mask over token ids."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "slime"
COLUMNS = {"task": "group_index", "trajectory": "_trajectory", "reward": "reward", "iteration": "_iteration"}
MISSING = {
    "reward": 'rewards are of whole samples; of an object of several name one: columns={"reward": "reward.KEY"}',
    "state": "the state is the prompt; later ones stand inside `response`: record `state` in the custom generate function",
    "action": "actions stand inside the whole text of a sample, in `response`: record `action` in the custom generate function",
    "step": "turns are runs of 1 in loss_mask, whose text needs the tokenizer, so there is no step level: record steps as they are made",
}
CONVERSATION = True  # an answer is the text of a whole trajectory, which has no single action


def knows(record: dict[str, Any]) -> bool:
    """The file as a whole."""
    return "rollout_id" in record and isinstance(record.get("samples"), list)


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One record a sample."""
    for sample in record["samples"]:
        own = sample.get("rollout_id")
        yield sample | {"_trajectory": sample.get("index") if own is None else own, "_iteration": record["rollout_id"]}


def turns(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sample; an empty response is an answer too."""
    prompt, mask = sample.get("prompt"), sample.get("loss_mask")
    if isinstance(prompt, list):
        prompt = "\n".join(chat.text(message.get("content")) for message in prompt)
    tokens = sum(mask) if mask is not None else sample.get("response_length")
    yield {"state": prompt, "response": sample.get("response"), "tokens": tokens}
