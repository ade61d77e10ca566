"""Recipes: found by name, the same object every time, refused if wrong; and every one of them right, fused or not, over all its options."""

import functools
import inspect
import pickle
import re
from collections import OrderedDict

import pytest
import torch

from gigpo_fast import recipes, testing
from gigpo_fast.distributed import global_denominator
from gigpo_fast.loss import grpo_loss, linear_policy_loss, policy_loss
from gigpo_fast.objective import PolicyObjective, Scheduled, Scope
from gigpo_fast.pairwise import PairwiseObjective, linear_pairwise_loss, pairwise_loss, response_loss
from gigpo_fast.recipes import Parts, Recipe, base, names, recipe, register
from tests.loss_helpers import keywords_of, make_batch, per_token, run_linear, run_policy
from tests.pairwise_cases import given, responses
from tests.recipe_cases import OBJECTIVES, OTHER, PAIRWISE, POLICY, choices, other, settings, varied
from tests.test_linear_policy_loss import GRADIENTS, defeat_skipping, zeroed
from tests.tolerance import assert_same_bits, error

RESPONSES = ("kto", "bco", "sppo", "apo_zero", "nca_pair", "a_star_po")


@pytest.mark.parametrize("name", names())
def test_each_is_documented_and_small(name):
    made = getattr(recipes, name)
    parameters = inspect.signature(made).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty for parameter in parameters)
    assert len(parameters) <= 8
    assert made.__doc__ and len(made.__doc__.split()) >= 12
    found = recipe(name)
    assert isinstance(found, Recipe) and found.name == name
    assert re.search(r"arXiv \d{4}\.\d{4,5}\)|TRL|\(Williams 1992\)|et al\. \d{4}\)", found.paper)
    assert isinstance(found.objective, (PolicyObjective, PairwiseObjective))
    assert hash(found.objective) is not None


@pytest.mark.parametrize("name", names())
def test_the_same_choice_is_the_same_object(name):
    """What torch.compile has seen once it knows again."""
    own = settings(name)
    assert recipe(name) is recipe(name) is getattr(recipes, name)()
    assert recipe(name, **own) is recipe(name, **dict(reversed(own.items()))) and recipe(name, **own).objective == recipe(name).objective
    assert pickle.loads(pickle.dumps(recipe(name))).objective == recipe(name).objective


@pytest.mark.parametrize("name", names())
def test_every_setting_is_honoured(name):
    """Another value of a setting changes the objective, the advantages, the rewards or the schedule."""
    others = {"gamma": 0.5, "lam": 0.5, "history": 3, "length_exponent": 2.0, "step_weight": 0.5, "scale": "std", "normaliser": 2.0, "decay": 0.5,
              "k": 3, "top": 2, "normalise_first": True, "max_length": 100, "buffer": 10, "clamp": False, "slope": 0.25, "offset": 0.75, "max_calls": 9,
              "reward_clip": None, "ddof": 0, "least": 0.005, "most": 0.05, "explore": 40, "steps": 90, "start": 0.01, "decrement": 1e-4,
              "floor": 5e-4, "beta": 0.3, "label_smoothing": 0.2, "alpha": 0.3, "margin": 0.25, "share": 0.5, "per_token": True, "flip_rate": 0.2,
              "eta": 0.3, "odds_coefficient": 0.3, "epsilon": 0.3, "credit": 5.0, "shift": 0.2, "valley": 0.2, "warmup": 3.0}  # fmt: skip
    for key, default in settings(name).items():
        chosen = other(name, key) if name in POLICY and key in varied(name) else {**OTHER, **others}[key]
        assert chosen != default, key
        context = {"entropy_coefficient": 0.1} if (name, key) == ("ppo_max", "entropy_target") else {}
        context |= {"fraction": 0.5} if (name, key) == ("dancegrpo", "seed") else {}
        assert recipe(name, **context, **{key: chosen})[2:] != recipe(name, **context)[2:], key


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="recipe: name must be that of a recipe, got 'gpso'; the nearest are 'hgpo', 'gspo', 'grpo', recipes.names"):
        recipe("gpso")
    with pytest.raises(TypeError, match=r"recipe: 'gspo' takes the settings \['clip_high', 'clip_low'\], got \['epsilon'\]; compose"):
        recipe("gspo", epsilon=0.2)
    with pytest.raises(AttributeError, match=r"no attribute 'gpso'; recipes.names\(\) lists"):
        recipes.gpso  # noqa: B018
    with pytest.raises(ValueError, match="'grpo_d' takes 0 < explore < steps and 0 <= least < most, got explore=200"):
        recipe("grpo_d", explore=200)
    with pytest.raises(ValueError, match="'inpo' takes 0 <= share <= 1, got share=2.0"):
        recipe("inpo", share=2.0)
    with pytest.raises(ValueError, match="Clip: low must be a number >= 0 and <= 1, got 2.0; the usual value is 0.2"):
        recipe("grpo", clip_low=2.0)
    with pytest.raises(ValueError, match="KLPenalty: anchor must be"):
        recipe("unigrpo", anchor="nobody")


def test_registering_ones_own(monkeypatch):
    monkeypatch.setattr(base, "_entries", dict(base._entries))
    monkeypatch.setattr(base, "_made", OrderedDict())

    @register("A paper of tomorrow (arXiv 9901.00001)")
    def tomorrow(*, clip: float = 0.2) -> Parts:
        """GRPO with another clip."""
        return Parts(recipe("grpo", clip_low=clip).objective)

    found = recipe("tomorrow", clip=0.3)
    assert "tomorrow" in names() and found.paper.startswith("A paper of") and found.objective == recipe("grpo", clip_low=0.3).objective
    assert tomorrow(clip=0.3) is found and tomorrow.__doc__ == "GRPO with another clip."
    with pytest.raises(ValueError, match="register: name must be new, got 'tomorrow'"):
        register("Another (arXiv 9901.00002)")(tomorrow)
    with pytest.raises(TypeError, match="register: settings of 'loose' must be keyword-only"):

        @register("Loose (arXiv 9901.00003)")
        def loose(clip=0.2):
            return Parts(recipe("grpo").objective)


CASES = ["holes and an empty row"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_from_log_probs(name):
    """Against the float64 reference, in every dtype."""
    testing.check_loss(functools.partial(policy_loss, objective=OBJECTIVES[name]), objective=OBJECTIVES[name], cases=CASES)


# NFT's terms have both signs and cancel in the usual batch: one rounding of a term is more than the rule allows to their sum.
CANCELS = {"nft_sequence": ["packed"]}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fused(name):
    loss = functools.partial(linear_policy_loss, objective=OBJECTIVES[name])
    testing.check_loss(loss, objective=OBJECTIVES[name], linear=True, cases=CANCELS.get(name, CASES))


@pytest.mark.parametrize("name", POLICY)
def test_fused_and_not_are_equal_over_all_options(name):
    """Every combination of a recipe's options: the same loss, and the gradient through the head of the unfused one."""
    b = make_batch((4, 5), dtype=torch.float64)
    log_p = torch.log_softmax(b.hidden @ b.weight.T + b.bias, -1)
    p, one_hot = log_p.exp(), torch.nn.functional.one_hot(b.token_ids, log_p.shape[-1])
    for objective in {recipe(name, **chosen).objective for chosen in choices(name)}:
        fused, plain = run_linear(b, objective), run_policy(b, objective)
        scale = max(1.0, float(plain.loss.abs()))
        assert error(fused.loss, plain.loss) <= 1e-12 * scale, objective
        d_logits = plain.log_probs[..., None] * (one_hot - p)
        if plain.entropy is not None:
            d_logits = d_logits - plain.entropy[..., None] * p * (log_p + b.entropy[..., None])
        for got, want in ((fused.hidden, d_logits @ b.weight), (fused.bias, d_logits.sum((0, 1)))):
            assert error(got, want) <= 1e-12 * max(1.0, float(want.abs().max())), objective


@pytest.mark.parametrize("pattern", ["whole rows", "everywhere"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_skipping_changes_nothing(name, pattern):
    b, objective = zeroed(make_batch((4, 6), dtype=torch.float64), pattern), OBJECTIVES[name]
    got = run_linear(b, objective)
    planner, active = defeat_skipping()
    with planner, active:
        want = run_linear(b, objective)
    assert error(got.loss, want.loss) <= 1e-14 * max(1.0, float(want.loss.abs()))
    for what in GRADIENTS:
        assert error(getattr(got, what), getattr(want, what)) <= 1e-13 * max(float(getattr(want, what).abs().max()), 1e-3), what


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_policy_has_a_gradient(name):
    """Advantages, old, reference and rollout log-probs, weights and the rest of the extras are constants."""
    b, objective = make_batch((3, 4), dtype=torch.float64), OBJECTIVES[name]
    keywords = keywords_of(b, objective)
    extras = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in keywords.pop("extras", {}).items()}
    constants = {key: value.clone().requires_grad_() for key, value in keywords.items() if value.is_floating_point()}
    if objective.needs_entropy:
        constants["entropy"] = b.entropy.clone().requires_grad_()
    log_probs, advantages = b.log_probs.clone().requires_grad_(), b.advantages.clone().requires_grad_()
    policy_loss(log_probs, advantages, b.mask, objective=objective, **keywords | constants, extras=extras).loss.backward()
    constants.pop("entropy", None)
    assert log_probs.grad is not None and advantages.grad is None
    assert all(value.grad is None for value in [*constants.values(), *extras.values()])


# These count in a call what belongs to the batch: a part of a batch has another number, and says so in its docstring.
COUNTED = {name for name, objective in OBJECTIVES.items() if objective.scope == Scope.BATCH}
COUNTED |= {
    name for name, objective in OBJECTIVES.items() if any(p.aggregation is not None and p.denominator is None for p in objective.penalties)
}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in COUNTED])
def test_any_split_gives_the_same_loss_and_gradient(name):
    objective, b = OBJECTIVES[name], make_batch((5, 4), dtype=torch.float64, seed=3)
    denominator = global_denominator(b.mask, objective=objective)
    whole = run_policy(b, objective, denominator=denominator)
    pieces = [
        run_policy(per_token(b, lambda value, r=rows: value[r]), objective, denominator=denominator) for rows in torch.arange(5).split(2)
    ]
    assert error(sum(piece.loss for piece in pieces), whole.loss) <= 1e-13 * max(1.0, float(whole.loss.abs()))
    assert error(torch.cat([piece.log_probs for piece in pieces]), whole.log_probs) <= 1e-13 * max(1.0, float(whole.log_probs.abs().max()))


def test_what_a_batch_counts_can_be_given():
    """UniGRPO's penalty over parts of a batch, with its denominator; the others' statistics have an argument of their own (see their blocks)."""
    import dataclasses

    found, b = recipe("unigrpo", kl_coefficient=0.5).objective, make_batch((5, 4), dtype=torch.float64, seed=3)
    objective = dataclasses.replace(found, divergence=dataclasses.replace(found.divergence, denominator=5.0))
    whole = run_policy(b, objective, denominator=5.0)
    pieces = [run_policy(per_token(b, lambda value, r=rows: value[r]), objective, denominator=5.0) for rows in torch.arange(5).split(2)]
    assert error(sum(piece.loss for piece in pieces), whole.loss) <= 1e-13


def test_schedules():
    """GRPO-D's coefficient: the middle, down to the least, up to the most; KDRL's steps."""
    found = recipe("grpo_d", least=0.0, most=0.02, explore=30, steps=100)
    at = Scheduled(found.objective, found.schedules)
    assert [at(step).divergence.coefficient for step in (0, 15, 30, 65, 100)] == pytest.approx([0.01, 0.005, 0.0, 0.01, 0.02])
    assert at(65).structure == found.objective.structure
    annealed = recipe("kdrl_annealed")
    at = Scheduled(annealed.objective, annealed.schedules)
    assert [at(step).divergence.coefficient for step in (0, 20, 40, 80, 200)] == pytest.approx([5e-3, 4e-3, 3e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("name", PAIRWISE)
def test_preference_recipes_run(name):
    """From sequence log-probs, and from hidden states with the same result."""
    b, objective = responses(), recipe(name).objective
    b.log_probs[3] = -1.0
    call, what = (response_loss, b.desirable) if name in RESPONSES else (pairwise_loss, b.pairs)
    log_probs = b.log_probs.clone().requires_grad_()
    out = call(log_probs, what, objective=objective, **given(b, objective, 7 if name in RESPONSES else 6))
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(log_probs.grad).all() and bool((log_probs.grad != 0).any())
    if call is pairwise_loss:
        c = make_batch((7, 4), dtype=torch.float64)
        given_ = given(b, objective, 6)
        lengths = given_.pop("lengths", None)
        fused = linear_pairwise_loss(c.hidden, c.weight, c.token_ids, c.mask, b.pairs, objective=objective, **given_)
        assert torch.isfinite(fused.loss) and (lengths is None) == (not objective.needs_lengths)


def test_a_named_loss_compiles_once():
    """The recipe is looked up while torch.compile traces: one graph, and no other for the same settings."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    call = torch.compile(lambda lp, A, mask: grpo_loss(lp, A, mask).loss, fullgraph=True, dynamic=True, backend=count)
    for _ in range(3):
        b = make_batch((3, 4), dtype=torch.float64)
        assert_same_bits("loss", call(b.log_probs, b.advantages, b.mask), grpo_loss(b.log_probs, b.advantages, b.mask).loss)
    assert len(graphs) == 1
    torch._dynamo.reset()
