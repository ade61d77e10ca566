"""verifiers 0.4 and prime-rl: an episode a line, its traces as trees of messages, of which the model wrote the sampled ones."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "verifiers"
COLUMNS = {"task": "_task", "trajectory": "id", "reward": "_reward"}
MISSING = {"state": chat.STATE, "action": chat.ACTION, "reward": chat.REWARD}


def knows(record: dict[str, Any]) -> bool:
    """An episode with traces, or a trace with nodes."""
    return isinstance(record.get("traces"), list) or isinstance(record.get("nodes"), list)


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One record a trace. Of several in an episode, those of one agent are compared with each other alone."""
    traces = record.get("traces", [record])
    for trace in traces:
        task = trace.get("task") or record.get("task") or {}
        label = (record.get("group") or trace.get("group") or {}).get("id") or task.get("key") or task.get("hash")
        if label is not None and len(traces) > 1:
            label = f"{label}/{(trace.get('agent') or {}).get('name')}"
        scores = (trace.get("rewards") or {}).values()
        yield trace | {"_task": label, "_reward": sum(score["score"] * score.get("weight", 1.0) for score in scores) if scores else None}


def turns(trace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every sampled node once, in the order of time; branches share what stands above them."""
    nodes = trace.get("nodes") or []
    for number, node in enumerate(nodes):
        if node.get("sampled"):
            step = {"state": "\n".join(_seen(nodes, number))} | chat.said(node["message"])
            mask = node.get("mask") or []
            credit = {x for x, trained in zip(node.get("advantages") or [], mask) if trained}
            yield step | {"tokens": sum(map(bool, mask)) if mask else None, "advantage": credit.pop() if len(credit) == 1 else None}


def _seen(nodes: list[dict], number: int) -> list[str]:
    """Texts on the way from the answer above to this one."""
    found, parent = [], nodes[number].get("parent")
    while parent is not None and not nodes[parent].get("sampled"):
        if not 0 <= parent < number:
            raise ValueError(f"node {number} has the parent {parent}, which comes later")
        message, number, parent = nodes[parent]["message"], parent, nodes[parent].get("parent")
        found += [chat.text(message.get("content"))] if message.get("role") not in chat.INSTRUCTIONS else []
    return found[::-1]
