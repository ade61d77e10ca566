"""Named losses show their keywords one by one, and say of a recipe's setting where it belongs; the command line helps when asked nothing."""

import inspect

import pytest
import torch

from gigpo_fast import __main__ as command
from gigpo_fast import loss, recipes
from tests.tolerance import assert_same_bits

G = torch.Generator().manual_seed(3)
LOG_PROBS, ADVANTAGES, MASK = -torch.rand(2, 4, generator=G), torch.randn(2, 4, generator=G), torch.ones(2, 4, dtype=torch.bool)
OLD, REF = -torch.rand(2, 4, generator=G), -torch.rand(2, 4, generator=G)
HIDDEN, HEAD, IDS = torch.randn(2, 4, 8, generator=G), torch.nn.Linear(8, 12, bias=False), torch.arange(8).view(2, 4)
OBJECTIVE = recipes.recipe("grpo").objective
TOKENS, LINEAR = (LOG_PROBS, ADVANTAGES, MASK), (HIDDEN, HEAD.weight.detach(), IDS, ADVANTAGES, MASK)
CALLS = {
    "grpo_loss": (loss.grpo_loss, TOKENS, loss.policy_loss, "grpo"),
    "gigpo_loss": (loss.gigpo_loss, TOKENS, loss.policy_loss, "gigpo"),
    "linear_grpo_loss": (loss.linear_grpo_loss, LINEAR, loss.linear_policy_loss, "grpo"),
    "linear_gigpo_loss": (loss.linear_gigpo_loss, LINEAR, loss.linear_policy_loss, "gigpo"),
    "PolicyLoss": (loss.PolicyLoss(OBJECTIVE), TOKENS, loss.policy_loss, None),
    "LinearPolicyLoss": (loss.LinearPolicyLoss(HEAD, OBJECTIVE), (HIDDEN, IDS, ADVANTAGES, MASK), loss.linear_policy_loss, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_keywords_are_shown_and_handed_on(name):
    call, given, whole, _ = CALLS[name]
    shown = inspect.signature(call.forward if isinstance(call, torch.nn.Module) else call).parameters
    expected = {key: p for key, p in inspect.signature(whole).parameters.items() if p.kind is p.KEYWORD_ONLY and key != "objective"}
    assert {key: p for key, p in shown.items() if p.kind is p.KEYWORD_ONLY} == expected
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    value = call(*given, old_log_probs=OLD, denominator=3.0).loss
    objective = recipes.recipe("gigpo" if "gigpo" in name else "grpo").objective
    same = TOKENS if whole is loss.policy_loss else LINEAR
    reference = whole(*same, old_log_probs=OLD, denominator=3.0, objective=objective).loss
    assert_same_bits(name, value.detach(), reference.detach())


@pytest.mark.parametrize("name", CALLS)
def test_a_setting_of_a_recipe_points_to_recipes(name):
    call, given, whole, own = CALLS[name]
    with pytest.raises(TypeError) as caught:
        call(*given, kl_coefficient=0.01)
    text = str(caught.value)
    made = f'recipes.recipe("{own or "dapo"}", kl_coefficient=...).objective' if own else "kl_coefficient=...).objective"
    assert text.startswith(f"{name}: kl_coefficient must be set where the objective is made, got it as a keyword; write ") and made in text
    # The advice, followed: every name in it exists.
    objective = recipes.recipe(own or "grpo", kl_coefficient=0.01).objective
    if own:
        assert f"{whole.__name__}(..., objective=" in text
        whole(*given, ref_log_probs=REF, objective=objective)
    else:
        assert f"{name}(" in text
        type(call)(*([HEAD] if "Linear" in name else []), objective)(*given, ref_log_probs=REF)


@pytest.mark.parametrize("name", CALLS)
def test_other_keywords_are_named(name):
    call, given, whole, _ = CALLS[name]
    with pytest.raises(TypeError, match=rf"{name}: keywords must be some of \[.*'denominator'.*\], got 'old_logprobs'; correct the name"):
        call(*given, old_logprobs=OLD)
    with pytest.raises(TypeError, match=f"{name}: objective must be left out, it has one; call {whole.__name__}"):
        call(*given, objective=OBJECTIVE)


def test_asked_nothing_the_command_line_helps(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert "usage: python -m gigpo_fast" in shown and "doctor" in shown
