"""`gigpo_fast.testing` passes what is right and catches what others have shipped wrong; a checker that cannot fail would be worth nothing."""

import functools
import re

import pytest
import torch

from gigpo_fast import advantage, testing
from gigpo_fast.head import Head
from gigpo_fast.loss import linear_grpo_loss, linear_policy_loss, policy_loss
from gigpo_fast.objective import (
    K3,
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceRatio,
    Surrogate,
    TokenRatio,
    TokenWeights,
)
from tests.recipe_cases import OBJECTIVES


def told(line, text):
    """Whether a report has the line "case, dtype: start", where a line may name several dtypes and a scale."""
    case, _, rest = line.partition(":")
    name, _, dtype = case.rpartition(", ")
    start = re.escape(rest.strip())
    return re.search(rf"^  {re.escape(name)}(, scale='std')? \(.*{dtype}.*\): {start}", text, re.MULTILINE) is not None


def eager(
    log_probs, advantages, mask, *, old_log_probs=None, denominator=None, upper=1.2, fill=None, cap=20.0, precision=None, detach=False
):
    """GRPO's loss in plain torch; the options break it."""
    precision = precision or (torch.float64 if log_probs.dtype == torch.float64 else torch.float32)
    new = torch.where(mask, log_probs, 0).to(precision)
    old = new.detach() if old_log_probs is None else torch.where(mask, old_log_probs, 0).to(precision)
    advantages = torch.where(mask, advantages, 0).to(precision)
    ratio = (new - old).clamp(-cap, cap).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, upper))
    total = mask.sum().clamp(min=1) if denominator is None else denominator
    loss = (loss.detach() if detach else loss).sum() / total
    return loss.to(torch.float64 if log_probs.dtype == torch.float64 else torch.float32)


def eager_linear(hidden, head, token_ids, advantages, mask, *, temperature=1.0, rounded=False, drop=(), **keywords):
    """The same from hidden states; `rounded` keeps logits in the input dtype, `drop` forgets features of the head."""
    head = head if isinstance(head, Head) else Head(head)
    hidden, ids = torch.where(mask.unsqueeze(-1), hidden, 0), torch.where(mask, token_ids, 0)
    compute = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = (hidden @ head.weight.T).to(compute) if rounded else hidden.to(compute) @ head.weight.to(compute).T
    if head.bias is not None and "bias" not in drop:
        logits = logits + head.bias.to(compute)
    logits = logits * head.logit_scale
    if head.softcap is not None and "softcap" not in drop:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits if "temperature" in drop else logits / temperature
    log_probs = torch.log_softmax(logits, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return eager(log_probs, advantages, mask, **keywords)


def wrong_side(log_probs, advantages, mask, **keywords):
    """Clips bad actions above and good ones below: min where max belongs."""
    return -eager(log_probs, -advantages, mask, **keywords)


def multiplied(log_probs, advantages, mask, *, old_log_probs=None, denominator=None):
    """Masks by multiplication, after exp."""
    ratio = torch.exp((log_probs - (log_probs.detach() if old_log_probs is None else old_log_probs)).clamp(-20, 20)).to(advantages.dtype)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)) * mask
    return loss.sum() / (mask.sum().clamp(min=1) if denominator is None else denominator)


def all_slots(log_probs, advantages, mask, *, denominator=None, **keywords):
    """Divides by every slot, trained or not."""
    return eager(log_probs, advantages, mask, denominator=mask.numel() if denominator is None else denominator, **keywords)


class DropsUpstream(torch.autograd.Function):
    """A loss whose gradient does not know what it is multiplied by."""

    @staticmethod
    def forward(ctx, log_probs, advantages, mask, keywords):
        with torch.enable_grad():
            leaf = log_probs.detach().requires_grad_()
            loss = eager(leaf, advantages, mask, **keywords)
        ctx.gradient = torch.autograd.grad(loss, leaf)[0]
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.gradient, None, None, None


def drops_upstream(log_probs, advantages, mask, **keywords):
    return DropsUpstream.apply(log_probs, advantages, mask, keywords)


BROKEN = {
    "clip on the wrong side": (wrong_side, "all tokens trained, float32: loss"),
    "mask multiplied": (multiplied, "garbage at untrained tokens, float32: loss: got nan, expected"),
    "denominator from all slots": (all_slots, "holes and an empty row, float32: loss"),
    "denominator ignored": (lambda *a, denominator=None, **k: eager(*a, **k), "given denominator, float64: gradient of log_probs"),
    "other upper bound": (functools.partial(eager, upper=1.28), "all tokens trained, float64: loss"),
    "no bound on the log-ratio": (functools.partial(eager, cap=1e9), "extreme log-ratios, float32: gradient of log_probs: got nan, expected"),
    "arithmetic in the input dtype": (lambda lp, a, m, **k: eager(lp, a, m, precision=lp.dtype, **k), "all tokens trained, bfloat16: loss"),
    "arithmetic in float32": (functools.partial(eager, precision=torch.float32), "all tokens trained, float64: loss"),
    "upstream gradient dropped": (drops_upstream, "on-policy, float32: gradient of log_probs"),
    "no gradient": (functools.partial(eager, detach=True), "all tokens trained, float32: raised RuntimeError"),
    "old log-probs ignored": (lambda *a, old_log_probs=None, **k: eager(*a, **k), "all tokens trained, float32: loss"),
}  # fmt: skip


def test_a_right_loss_passes():
    report = testing.check_loss(eager)
    assert len(report.cases) == 3 * (len(testing.LOSS_CASES) - 2) and 0 < report.worst.share <= 1
    assert re.fullmatch(
        r"\d+ comparisons in \d+ cases, worst error 0\.\d\d of its tolerance \(.+: .+\)|.*1\.00 of its tolerance.*", str(report)
    )
    assert "\n" not in str(report)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_loss_is_caught(name):
    fn, line = BROKEN[name]
    with pytest.raises(AssertionError, match="check_loss: .* comparisons with the reference are wrong") as caught:
        testing.check_loss(fn)
    assert told(line, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("drop, line", [
    (("bias",), "gradient of bias must be"), (("softcap",), "bias, scale, softcap, temperature, float32: loss"),
    (("temperature",), "bias, scale, softcap, temperature, float64: loss"),
])  # fmt: skip
def test_a_dropped_feature_of_the_head_is_caught(drop, line):
    few = {"linear": True, "cases": ["all tokens trained", "garbage at untrained tokens", "bias, scale, softcap, temperature"]}
    assert testing.check_loss(eager_linear, dtypes=[torch.float32], **few).worst.share <= 1
    with pytest.raises(AssertionError) as caught:
        testing.check_loss(functools.partial(eager_linear, drop=drop), **few)
    wrong = str(caught.value).splitlines()[1:]
    assert all("bias, scale, softcap, temperature" in text for text in wrong), str(caught.value)
    assert line in str(caught.value) or told(line, str(caught.value)), str(caught.value)


def test_logits_in_the_input_dtype_are_caught():
    with pytest.raises(AssertionError) as caught:
        testing.check_loss(functools.partial(eager_linear, rounded=True), linear=True, cases=["all tokens trained", "packed"],
                           dtypes=[torch.float32, torch.bfloat16, torch.float16])  # fmt: skip
    wrong = str(caught.value)
    assert told("all tokens trained, bfloat16: loss", wrong) and told("all tokens trained, float16: loss", wrong) and "float32" not in wrong
    assert wrong.count("all tokens trained (bfloat16, float16): loss") == 1  # one line a mistake, not one a dtype


def test_every_option_of_an_objective_is_compared():
    objective = PolicyObjective(
        SequenceRatio(), Clip(dual=1.5), KLPenalty(0.1, K3(), own_mask=True), TokenWeights(), EntropyBonus(0.1), SequenceMeanTokenMean()
    )

    def right(fn):
        return testing.check_loss(fn, objective=objective, dtypes=[torch.float32])

    report = right(functools.partial(policy_loss, objective=objective))
    assert {comparison.quantity for comparison in report.comparisons} == {"loss", "gradient of log_probs", "gradient of entropy"}
    for other in (
        PolicyObjective(SequenceRatio(stop_gradient_mean=True), Clip(dual=1.5), KLPenalty(0.1, K3(), own_mask=True), TokenWeights(), EntropyBonus(0.1),
                        SequenceMeanTokenMean()),
        PolicyObjective(SequenceRatio(), Clip(), KLPenalty(0.1, K3(), own_mask=True), TokenWeights(), EntropyBonus(0.1), SequenceMeanTokenMean()),
        PolicyObjective(SequenceRatio(), Clip(dual=1.5), KLPenalty(0.1, K3(0.5), own_mask=True), TokenWeights(), EntropyBonus(0.1), SequenceMeanTokenMean()),
        PolicyObjective(SequenceRatio(), Clip(dual=1.5), KLPenalty(0.1, K3(), own_mask=True), TokenWeights(), EntropyBonus(0.11), SequenceMeanTokenMean()),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            right(functools.partial(policy_loss, objective=other))


def test_cases_can_be_chosen():
    report = testing.check_loss(functools.partial(linear_grpo_loss), linear=True, cases=["on-policy", "packed"], dtypes=[torch.float32])
    assert report.cases == ("on-policy, float32", "packed, float32")
    with pytest.raises(ValueError, match=r"check_loss: cases must be some of .*got \['no such case'\]; correct the name"):
        testing.check_loss(eager, cases=["on-policy", "no such case"])
    with pytest.raises(TypeError, match="check_loss: cases must be a list of names, got 'packed'"):
        testing.check_loss(eager, cases="packed")


def test_a_foreign_block_is_refused():
    class Other(Surrogate):
        def loss(self, batch, log_ratio):
            return log_ratio

    import dataclasses

    objective = PolicyObjective(surrogate=dataclasses.dataclass(frozen=True)(Other)())
    with pytest.raises(TypeError, match="check_loss: objective.surrogate must be one of .*'Clip'.* the reference knows no other block"):
        testing.check_loss(functools.partial(policy_loss, objective=objective), objective=objective)


def test_a_loss_that_raises_is_listed():
    def raises(*arguments, **keywords):
        raise ZeroDivisionError("nobody expected this")

    with pytest.raises(AssertionError, match=r"on-policy \(float64, float32, bfloat16\): raised ZeroDivisionError: nobody expected this"):
        testing.check_loss(raises, cases=["on-policy"])


def textbook(rewards, trajectory, group, anchor, *, gamma, step=None, valid=None, scale=None):
    """GiGPO advantages in plain torch without thought: rows in the order given, group means by row, singletons kept."""
    returns = torch.zeros_like(rewards)
    following = {}
    for row in reversed(range(len(rewards))):
        name = int(trajectory[row])
        following[name] = returns[row] = rewards[row] + gamma * following.get(name, 0.0)
    result = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        totals = torch.stack(
            [rewards[trajectory == trajectory[other]].sum() for other in range(len(rewards)) if group[other] == group[row]]
        )
        states = returns[(anchor == anchor[row]) & (group == group[row])]
        result[row] = rewards[trajectory == trajectory[row]].sum() - totals.mean() + returns[row] - states.mean()
    return result


@pytest.mark.parametrize("scale", [None, "std"])
def test_right_advantages_pass(scale):
    report = testing.check_advantages(advantage.gigpo_advantages, scale=scale)
    assert {comparison.quantity for comparison in report.comparisons} == {"advantages", "episode", "step", "step_returns"}
    assert report.worst.share <= 1
    testing.check_advantages(lambda *a, **k: advantage.gigpo_advantages(*a, **k).advantages, scale=scale)  # a bare tensor will do


def ignoring(name):
    return lambda *a, **k: advantage.gigpo_advantages(*a, **{key: value for key, value in k.items() if key != name})


def low_precision(rewards, *arguments, **keywords):
    found = advantage.gigpo_advantages(rewards.to(torch.bfloat16).to(rewards.dtype), *arguments, **keywords)
    return found.advantages


@pytest.mark.parametrize("fn, line", [
    (textbook, "rows in time order, float32: advantages"),  # a trajectory counts once, however many rows it has
    (ignoring("step"), "rows in any order, with steps, float64: step_returns"),
    (ignoring("valid"), "invalid rows hold NaN, float32:"),
    (low_precision, "large common reward, float32: advantages"),
    (lambda *a, gamma, **k: advantage.gigpo_advantages(*a, gamma=1.0, **k), "rows in time order, float64: step"),
    (lambda *a, **k: advantage.gigpo_advantages(*a, **k).episode, "rows in time order, float64: advantages"),
    (lambda r, t, g, a, **k: advantage.gigpo_advantages(r, t, g, a * 0, **k), "rows in time order, float64: step"),
    (functools.partial(advantage.gigpo_advantages, statistics=advantage.VERL_AGENT), "one trajectory a task, float64: episode"),
])  # fmt: skip
def test_broken_advantages_are_caught(fn, line):
    with pytest.raises(AssertionError, match="check_advantages: .* wrong") as caught:
        testing.check_advantages(fn)
    assert told(line, str(caught.value)), str(caught.value)


def test_equal_rewards_must_give_exactly_zero():
    def residue(*arguments, **keywords):
        found = advantage.gigpo_advantages(*arguments, **keywords)
        return torch.where(found.advantages == 0, 1e-9, found.advantages)

    with pytest.raises(AssertionError, match=r"equal rewards, scale=.std. \(float64, float32\): advantages: got 1e-09, expected 0 at \[\d+\] \(error 1e-09, allowed 0\)"):
        testing.check_advantages(residue, cases=["equal rewards"], scale="std")


def test_linear_losses_of_this_package_pass():
    report = testing.check_loss(functools.partial(linear_policy_loss, objective=PolicyObjective()), linear=True, dtypes=[torch.bfloat16])
    assert "gradient of bias" in {comparison.quantity for comparison in report.comparisons}


def textbook_loss(log_probs, advantages, mask, *, old_log_probs=None, ref_log_probs, denominator=None, mutant=""):
    """The clipped loss with k3 as a textbook writes it, in the order of its symbols; each mutant is one slip."""
    dtype = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    new, ref, A = (torch.where(mask, value, 0).to(dtype) for value in (log_probs, ref_log_probs, advantages))
    old = new if old_log_probs is None else torch.where(mask, old_log_probs, 0).to(dtype)
    old = old if mutant == "missing detach" else old.detach()
    gap = new - old if mutant == "missing clamp" else (new - old).clamp(-20, 20)
    ratio = gap.exp()
    clipped = ratio.clamp(0.8, 1.2)
    policy = torch.minimum(-A * ratio, -A * clipped) if mutant == "clip sign" else torch.maximum(-A * ratio, -A * clipped)
    apart = (new - ref if mutant == "KL sign" else ref - new).clamp(-20, 20)
    loss = policy + 0.1 * (torch.expm1(apart) - apart)
    total = (mask.numel() if mutant == "padded mean" else mask.sum().clamp(min=1)) if denominator is None else denominator
    return torch.where(mask, loss, 0).sum() / total


MUTANTS = {  # what the report says of each: the case, the quantity, and a word of the hint
    "clip sign": ("all tokens trained, float64: loss: got", "a sign"),
    "KL sign": ("all tokens trained, float64: loss: got", "the KL"),
    "padded mean": ("holes and an empty row, float64: loss: got", "divide by mask.sum()"),
    "missing detach": ("on-policy, float64: gradient of log_probs: got", "log_probs.detach()"),
    "missing clamp": ("extreme log-ratios, float64: loss: got", "clamp it to +-20 before exp"),
}  # fmt: skip
WITH_KL = PolicyObjective(divergence=KLPenalty(0.1))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_a_textbook_loss(mutant):
    line, hint = MUTANTS[mutant]
    with pytest.raises(AssertionError) as caught:
        testing.check_loss(functools.partial(textbook_loss, mutant=mutant), objective=WITH_KL, dtypes=[torch.float64, torch.float32])
    text = str(caught.value)
    shown = next((row for row in text.splitlines() if told(line, row)), None)
    assert shown is not None and hint in text and "expected" in shown, text
    names = [row.partition(": got")[0] for row in text.splitlines()[1:]]
    assert len(names) == len(set(names)) and f"{len(names)} mistakes" in text.splitlines()[0]


def test_the_textbook_itself_passes():
    testing.check_loss(textbook_loss, objective=WITH_KL, dtypes=[torch.float64, torch.float32])


def test_a_deviation_by_n_is_told_by_default():
    wrong = functools.partial(advantage.gigpo_advantages, statistics=advantage.GroupStatistics(ddof=0))
    with pytest.raises(AssertionError) as caught:
        testing.check_advantages(wrong)
    assert told("rows in time order, float64: advantages: got", str(caught.value)) and "n - 1 (ddof)" in str(caught.value)
    assert "scale='std'" in str(caught.value) and "rows in time order (" not in str(caught.value)  # centring alone is right


@pytest.mark.parametrize("value", [0.5, None, (torch.tensor(1.0), 2), torch.ones(3)])
def test_the_type_of_a_result_is_told_first(value):
    with pytest.raises(AssertionError, match="^check_loss: fn must return a 0-dim tensor, or an object with .loss that is one, got [a-zA-Z]+ .*; sum what"):
        testing.check_loss(lambda *a, **k: value)
    if not isinstance(value, torch.Tensor):
        with pytest.raises(AssertionError, match="^check_advantages: fn must return a tensor of advantages, or an object with .advantages, got"):
            testing.check_advantages(lambda *a, **k: value)


def test_an_infinite_ratio_has_a_slope_of_zero_where_it_is_clipped():
    objective = PolicyObjective(TokenRatio(None))
    report = testing.check_loss(functools.partial(policy_loss, objective=objective), objective=objective)
    assert any(c.case.startswith("extreme") and c.quantity == "gradient of log_probs" for c in report.comparisons)


# The case's old log-probs lie above 0, where a KL of two probabilities, read with other settings, is anything.
@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"dppo_kl, other settings"}))
def test_extreme_ratios_are_right_for_every_recipe_and_no_crash(name):
    run = functools.partial(policy_loss, objective=OBJECTIVES[name])
    testing.check_loss(run, objective=OBJECTIVES[name], cases=["extreme log-ratios"], dtypes=[torch.float32])
