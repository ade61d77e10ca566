"""Normalisers learnt from the data: what differs between texts of one task that are nearly equal, and what masking it would leave.

Nothing is known about the environment. Texts that are equal but for their numbers show which numbers change; texts that hold the same
words in another order show which lists are shuffled; texts that are equal but for blanks show those. Every masking found so is tried.

A number may be a counter or a part of the state. Where the true states are known, they decide. Where not, a number is masked only if
it stands in most texts of its tasks, and runs in one direction as time goes on, and either leaves many steps alone that its masking
brings together, or changes at nearly every step.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .candidates import Candidate, blank_candidates, list_candidates, number_candidates
from .evidence import Outcome, Texts, Tried, attempt, changed_by, joined_wrongly, outcome
from .normalise import Normaliser, compose

MOST_MASKINGS = 12  # one on top of the other
WORTHWHILE = 0.01  # of all steps must cease to be alone where a number is masked with exceptions

USUAL = 0.5  # a counter stands in at least this share of the steps of its tasks,
ONE_WAY = 0.9  # at least this share of its changes within a trajectory go one way
ONE_WAY_IN_A_TASK = 0.65  # (fewer if trajectories are not known: then each one's start is a change the other way);
ALONE = 0.2  # and at least this share of the steps that hold it are alone because of it,
HALVED = 0.5  # of which masking it leaves at most this share,
EVERY_STEP = 0.8  # or it goes that way between at least this share of consecutive steps, and masking it halves the groups


class Proposal(NamedTuple):
    """A normaliser that was tried on the texts that the ones before it had left, and what it would leave."""

    normaliser: Normaliser
    what: str  # in words
    alone: float  # share of the steps that would share their state with no other step
    groups: int
    refused: str  # "" if it is proposed, else why not

    def __str__(self) -> str:
        text = f"{self.what} would leave {self.alone:.1%} of the steps alone ({self.groups} groups)"
        return f"{text}; not proposed: {self.refused}" if self.refused else text


def propose(texts: Texts, every: Texts, progress: Callable[[Iterable], Iterable]) -> tuple[list[Proposal], list[Proposal]]:
    """The maskings to apply, one after the other, and those that were refused: learnt and tried on `texts`, applied to `every` text."""
    accepted: list[tuple[Normaliser, str]] = []
    refused: dict[str, Proposal] = {}
    current, best = texts.text, None
    while len(accepted) < MOST_MASKINGS:
        for learn in (list_candidates, number_candidates, blank_candidates):
            best, others = _best(texts, current, progress(learn(texts, current)))
            refused = {other.what: other for other in others} | refused  # the first time says what it would do to the texts as they are
            if best is not None:
                break
        else:
            break
        accepted.append(best[:2])
        current = best[2]
    # Of maskings with the same outcome (after, before, between) one says it all; lists and blanks first, since they are seldom state.
    by_length = sorted(refused.values(), key=lambda proposal: -len(proposal.what))
    distinct = {(proposal.groups, proposal.alone, proposal.refused): proposal for proposal in by_length}  # keeps the shortest
    others = sorted(distinct.values(), key=lambda proposal: ("number" in proposal.what, proposal.groups))
    return _in_a_row(every, _needed(texts, accepted), checked=texts is not every), others


def _best(texts: Texts, current: list[str], candidates: Iterable[Candidate]) -> tuple[tuple | None, list[Proposal]]:
    """The candidate that brings the most steps together, as (normaliser, what, texts it makes); and those that may not be used."""
    as_it_is = outcome(texts, current)
    best, best_rank, refused = None, None, []
    for candidate in candidates:
        tried = attempt(texts, current, candidate.normaliser, candidate.view)
        before, after = outcome(texts, changed_by(candidate.view, current)), outcome(texts, tried.seen)
        reason = _why_not(texts, current, candidate, tried, before, after)
        if reason:
            everywhere = outcome(texts, tried.everywhere)
            if everywhere.groups < as_it_is.groups:
                refused.append(_proposal(texts, candidate.normaliser, candidate.what, everywhere, reason))
            continue
        # Of equal ones that which changes the least text, then that with the longest, most specific context.
        touched = sum(map(str.__ne__, current, tried.text))
        rank = (before.alone - after.alone, before.groups - after.groups, -touched, len(candidate.what))
        if best_rank is None or rank > best_rank:
            what = f"{candidate.what}, but not where that joins different true states," if tried.kept_apart else candidate.what
            best, best_rank = (tried.normaliser, what, tried.text), rank
    return best, refused


def _needed(texts: Texts, accepted: list[tuple[Normaliser, str]]) -> list[tuple[Normaliser, str]]:
    """The accepted ones without those that a later one made superfluous."""

    def result(parts: list[tuple[Normaliser, str]]) -> list[str]:
        return changed_by(compose(*(normaliser for normaliser, _ in parts)), texts.text)

    wanted = outcome(texts, result(accepted))
    for part in list(accepted):
        fewer = [other for other in accepted if other is not part]
        text = result(fewer)
        if outcome(texts, text) == wanted and not joined_wrongly(texts, texts.text, text):
            accepted = fewer
    return accepted


def _in_a_row(texts: Texts, accepted: list[tuple[Normaliser, str]], *, checked: bool) -> list[Proposal]:
    """What each leaves on top of the ones before; `checked`: they were tried on a sample, so truth is asked about all texts once more."""
    current, proposals = texts.text, []
    for normaliser, what in accepted:
        if checked and texts.truths is not None:
            tried = attempt(texts, current, normaliser)
            normaliser, current = tried.normaliser, tried.text
        else:
            current = changed_by(normaliser, current)
        proposals.append(_proposal(texts, normaliser, what, outcome(texts, current), ""))
    return proposals


def _proposal(texts: Texts, normaliser: Normaliser, what: str, left: Outcome, refused: str) -> Proposal:
    return Proposal(normaliser, what, left.alone / max(texts.total, 1), left.groups, refused)


def _why_not(texts: Texts, current: list[str], candidate: Candidate, tried: Tried, before: Outcome, after: Outcome) -> str:
    """Why the candidate may not be proposed; "" if it may."""
    if texts.truths is None:
        if after.groups == before.groups:
            return "it brings no steps together"
        return _why_no_counter(texts, current, candidate, tried) if candidate.is_number else candidate.doubt
    # With exceptions for every state that differs, almost any masking can be made to gain a little.
    least = WORTHWHILE * texts.total if candidate.is_number else 0
    if after.groups == before.groups or before.alone - after.alone < least:
        return "it would join different true states" if tried.kept_apart else "it brings too few steps together"
    return ""


def _why_no_counter(texts: Texts, current: list[str], candidate: Candidate, tried: Tried) -> str:
    holding = [pair for pair, (before, after) in enumerate(zip(current, tried.text)) if before != after]
    tasks = {texts.task[pair] for pair in holding}
    steps = sum(texts.steps[pair] for pair in holding)
    of_tasks = sum(steps for task, steps in zip(texts.task, texts.steps) if task in tasks)
    if steps < USUAL * of_tasks:
        return f"the number stands in {steps / of_tasks:.0%} of the steps only, so it may belong to the state"
    before, after = outcome(texts, current, holding), outcome(texts, tried.text, holding)
    one_way, every_step = _direction(texts, current, tried.normaliser)
    separates = before.alone >= ALONE * steps and after.alone <= HALVED * before.alone
    if not separates and (every_step < EVERY_STEP or after.groups > HALVED * before.groups):
        return "states with this number recur as they are, so it may belong to the state"
    if one_way < (ONE_WAY if len(texts.sequences) > len(set(texts.task)) else ONE_WAY_IN_A_TASK):
        return f"only {one_way:.0%} of its changes go one way, so it may belong to the state"
    return ""


def _direction(texts: Texts, current: list[str], normaliser: Normaliser) -> tuple[float, float]:
    """How often a number goes the more frequent way: as a share of its changes between consecutive steps, and of all such steps."""
    value = [_value(normaliser, text) for text in current]
    rises = falls = steps = 0
    for sequence in texts.sequences:
        seen = [value[pair] for pair in sequence if value[pair] is not None]
        steps += len(seen[1:])
        rises += sum(one < two for one, two in zip(seen, seen[1:]))
        falls += sum(one > two for one, two in zip(seen, seen[1:]))
    return max(rises, falls) / max(rises + falls, 1), max(rises, falls) / max(steps, 1)


def _value(normaliser: Normaliser, text: str) -> tuple[int, ...] | None:
    found = normaliser.regex.search(text)
    return None if found is None else tuple(map(int, re.findall(r"\d+", found[0])))
