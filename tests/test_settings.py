"""Numbers as trainers hold them, in every numeric setting of every recipe and every field of every block: read as numbers, or refused by name."""

import dataclasses
import fractions
import inspect
import math

import numpy as np
import pytest
import torch

from gigpo_fast import advantage, pairwise, recipes
from gigpo_fast import objective as blocks
from gigpo_fast.objective import K3, Clip, KLPenalty, PolicyObjective, TokenRatio, schedule, with_value
from gigpo_fast.objective.block import read as read_structure
from gigpo_fast.recipes import base, recipe
from gigpo_fast.settings import Settings, kind_of, number
from tests.recipe_cases import settings


def _numeric(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


NUMBERS = [(name, key) for name in recipes.names() for key, value in settings(name).items() if _numeric(value)]
NO_NUMBERS = ("1e-3", True, np.True_, [0.2], {"value": 0.2}, None, torch.tensor(0.5), 1j)


@pytest.mark.parametrize("name", recipes.names())
def test_every_number_of_a_recipe_is_read_or_refused(name):
    for key, value in settings(name).items():
        if not _numeric(value):
            continue
        optional = "None" in str(inspect.signature(getattr(recipes, name)).parameters[key].annotation)
        for wrong in NO_NUMBERS:
            if wrong is None and optional:
                continue
            with pytest.raises((TypeError, ValueError)) as caught:
                recipe(name, **{key: wrong})
            assert f"recipe {name!r}: {key} must be" in str(caught.value) and repr(wrong) in str(caught.value)
        with pytest.raises(ValueError, match=f"recipe '{name}': {key} must be .*, got nan"):
            recipe(name, **{key: math.nan})
        if math.isinf(value):
            continue
        whole = isinstance(value, int)
        for kind in (np.int64, np.int32) if whole else (np.float64, fractions.Fraction):
            assert recipe(name, **{key: kind(value)}) is recipe(name)
        if not whole and value == int(value):
            for kind in (int, np.int64, np.float32, np.float16):
                assert recipe(name, **{key: kind(value)}) is recipe(name)
        if whole:
            with pytest.raises(ValueError, match=f"{key} must be an int, got"):
                recipe(name, **{key: value + 0.5})


@pytest.mark.parametrize("name", recipes.names())
def test_every_switch_and_text_of_a_recipe_is_one(name):
    for key, value in settings(name).items():
        if isinstance(value, bool):
            assert recipe(name, **{key: np.bool_(value)}) is recipe(name)
            for wrong in (1, 0.0, "yes", None, []):
                with pytest.raises((TypeError, ValueError), match=f"{key} must be True or False, got"):
                    recipe(name, **{key: wrong})
        if isinstance(value, str):
            assert recipe(name, **{key: np.str_(value)}) is recipe(name)
            for wrong in (1, True, [value]):
                with pytest.raises((TypeError, ValueError), match=f"{key} must be text"):
                    recipe(name, **{key: wrong})


def test_the_remedy_for_a_text_works():
    with pytest.raises(TypeError, match=r"recipe 'grpo': clip_low must be a number, got '2e-1'; convert it, for example with float"):
        recipe("grpo", clip_low="2e-1")
    assert recipe("grpo", clip_low=float("2e-1")) is recipe("grpo")
    with pytest.raises(ValueError, match="recipe 'mdpo': a setting that divides must not be 0, got {'step_size': 0.0}"):
        recipe("mdpo", step_size=0)


# What a block's fields without a default are in these tests.
NEEDED = {
    "coefficient": 0.5, "target": 1.0, "beta": 0.1, "length": 8.0, "threshold": 0.5, "fraction": 0.5, "mean_advantage": 0.0, "mean_log_prob": -1.0,
    "cutoff": 0.5, "value": 0.5, "start": 1.0, "end": 0.0, "steps": 10.0, "decrement": 0.1, "floor": 0.0, "peak": 0.9, "warmup": 2.0, "decay": 5.0, "terms": (Clip(),), "coefficients": (1.0,),
    "surrogate": Clip(), "weighting": blocks.TokenWeights(), "factors": (blocks.TokenWeights(),), "points": ((0, 1.0), (1, 2.0)),
}  # fmt: skip
CONTEXT = {"denominator": {"aggregation": blocks.TokenSum()}, "low": {}, "threshold": {}}
MADE = sorted(
    (
        value
        for module in (blocks, pairwise, schedule)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Settings) and dataclasses.is_dataclass(value) and value is not blocks.PolicyObjective
    ),
    key=lambda kind: (kind.__module__, kind.__name__),
)
FIELDS = list(dict.fromkeys((kind, field.name) for kind in MADE for field in dataclasses.fields(kind) if kind_of(field.type).number))


def _made(kind: type, name: str, value):
    given = {f.name: NEEDED[f.name] for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    given |= CONTEXT.get(name, {}) if name in CONTEXT and set(CONTEXT[name]) <= {f.name for f in dataclasses.fields(kind)} else {}
    if kind is blocks.Rejection:
        given["high"] = 9.0
    return kind(**{**given, name: value})


def test_the_walk_finds_the_blocks():
    assert len(FIELDS) > 80 and {kind.__name__ for kind, _ in FIELDS} >= {"Clip", "K1", "Score", "Linear", "HingeKL", "TokenRatio"}


@pytest.mark.parametrize("kind, name", FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_of_a_block_is_read_or_refused(kind, name):
    wanted = next(kind_of(field.type) for field in dataclasses.fields(kind) if field.name == name)
    for wrong in NO_NUMBERS:
        if (wrong is None and wanted.none) or (isinstance(wrong, list) and wanted.numbers):
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            _made(kind, name, wrong)
        assert f"{kind.__name__}: {name} must be" in str(caught.value) and repr(wrong) in str(caught.value)
    with pytest.raises(ValueError, match=f"{kind.__name__}: {name} must be .*, got nan"):
        _made(kind, name, math.nan)
    fits = []
    for value in (1, 2, 0.5, 0.25):  # whatever its bounds are, one of them lies within
        try:
            fits.append((value, _made(kind, name, value)))
        except ValueError as error:
            assert repr(value) in str(error) or "low must be <= high" in str(error)
    assert fits
    for value, found in fits:
        held = getattr(found, name)
        plain = held[1] if isinstance(held, tuple) else held
        assert type(plain) is wanted.number and plain == value
        for same in (np.int64, np.float32, np.float64) if wanted.number is float and value == int(value) else ():
            again = _made(kind, name, same(value))
            assert again == found and hash(again) == hash(found) and type(getattr(again, name)) is type(held)
        if wanted.number is int:
            assert _made(kind, name, np.int64(value)) == found


@pytest.mark.parametrize("made, path", [
    (lambda value: PolicyObjective(surrogate=Clip(0.2, value)), "surrogate.high"),
    (lambda value: PolicyObjective(TokenRatio(value)), "ratio.log_ratio_clip"),
    (lambda value: PolicyObjective(TokenRatio((-1, value))), "ratio.log_ratio_clip.1"),
    (lambda value: PolicyObjective(divergence=KLPenalty(0.1, K3(value))), "divergence.estimator.input_clip"),
    (lambda value: PolicyObjective(divergence=KLPenalty(value)), "divergence.coefficient"),
    (lambda value: PolicyObjective(surrogate=blocks.SurrogateSum((Clip(),), [value])), "surrogate.coefficients.0"),
])  # fmt: skip
def test_an_int_is_a_number_and_no_structure(made, path):
    assert made(1).structure == made(2.0).structure == made(np.int64(3)).structure
    assert made(1) == made(1.0) and hash(made(1)) == hash(made(1.0)) and torch.equal(made(1).numbers, made(1.0).numbers)
    assert with_value(made(1), path, 2) == made(2.0) == with_value(made(1), path, np.float32(2))
    for wrong in ("0.5", True, math.nan):
        with pytest.raises((TypeError, ValueError), match="must be"):
            with_value(made(1), path, wrong)


@dataclasses.dataclass(frozen=True)
class Sharp(blocks.Surrogate):
    """A block of somebody else, with plain annotations and a __post_init__ of its own."""

    sharpness: float = 5.0
    power: "int" = 2
    bound: "float | None" = number(None, above=0)

    def __post_init__(self) -> None:
        assert type(self.sharpness) is float and type(self.power) is int
        object.__setattr__(self, "reads", ("correct",) if self.power > 2 else ())

    def loss(self, batch, log_ratio):
        return -batch.advantages * torch.tanh(self.sharpness * log_ratio) ** self.power


def test_the_fields_of_a_block_of_ones_own_are_read_as_well():
    made = PolicyObjective(surrogate=Sharp(5, np.int64(2), 1))
    assert made.structure == PolicyObjective(surrogate=Sharp(7.5, 2, 3.0)).structure and made.numbers.tolist() == [20.0, 5.0, 1.0]
    assert read_structure(made.structure, tuple(made.numbers.tolist())) == made
    assert Sharp(power=3).reads == ("correct",) and with_value(made, "surrogate.sharpness", 2).surrogate.sharpness == 2.0
    for wrong, message in (({"sharpness": "5"}, "Sharp: sharpness must be a number, got '5'"), ({"power": 2.0}, "Sharp: power must be an int, got 2.0"),
                           ({"bound": 0}, "Sharp: bound must be a number > 0 or None, got 0"), ({"bound": True}, "Sharp: bound must be .*, got True")):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            Sharp(**wrong)


def test_recipes_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr(base, "_made", type(base._made)())
    first, plain = recipe("grpo", kl_coefficient=1.0), recipe("gspo")
    for step in range(base.KEPT + 100):
        recipe("grpo", kl_coefficient=1e-7 * (step + 2))
        assert recipe("gspo") is plain  # used all the time, so it stays
    assert len(base._made) == base.KEPT == 1024
    again = recipe("grpo", kl_coefficient=1.0)
    assert again is not first and again.objective == first.objective and again.objective.structure == first.objective.structure


def test_settings_that_are_written_out_are_the_same_recipe():
    assert recipe("grpo", clip_low=0.2, dual_clip=None) is recipe("grpo") is recipes.grpo(clip_high=0.2)


@pytest.mark.parametrize("kind", [advantage.GroupStatistics, advantage.Whitening])
@pytest.mark.parametrize("wrong", [True, 1.0, "1", 2, None])
def test_a_count_of_degrees_of_freedom_is_an_integer(kind, wrong):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: ddof must be 0 or 1, got {wrong!r}; "):
        kind(ddof=wrong)
    assert kind(ddof=1).ddof == 1


def test_recipes_are_listed_and_typed():
    """`dir` for people, the two lists of names for type checkers."""
    from typing import get_args

    from gigpo_fast.recipes.known import PairwiseName, PolicyName

    own = {name for name, entry in base._entries.items() if entry.make.__module__.startswith("gigpo_fast.")}
    assert own <= set(dir(recipes)) and not own - set(recipes.__all__), "import a new recipe in recipes/__init__.py"
    policy, pairs = set(get_args(PolicyName)), set(get_args(PairwiseName))
    assert policy | pairs == own and not policy & pairs, f"name these in recipes/known.py: {own ^ (policy | pairs)}"
    assert all(type(recipe(name)) is recipes.PolicyRecipe and isinstance(recipe(name).objective, PolicyObjective) for name in policy)
    assert all(type(recipe(name)) is recipes.PairwiseRecipe and isinstance(recipe(name).objective, pairwise.PairwiseObjective) for name in pairs)


@pytest.mark.parametrize("name", [None, 3, ["grpo"], "", "gpso"])
def test_an_unknown_recipe_is_told_the_nearest_names(name):
    with pytest.raises(ValueError, match="recipe: name must be that of a recipe, got .*; the nearest are '[a-z0-9_]+', '[a-z0-9_]+', '[a-z0-9_]+', recipes.names"):
        recipe(name)


@pytest.mark.parametrize("name", recipes.names())
def test_whatever_has_settings_can_be_a_key(name):
    found = recipe(name)
    same = found._replace()
    assert same == found and hash(same) == hash(found) and {found: 1}[same] == 1
    assert len({found.objective, found.advantages, found.rewards, found.second}) >= 2
    scheduled = blocks.Scheduled(PolicyObjective(divergence=KLPenalty(0.1)), {"divergence.coefficient": blocks.Linear(0.1, 0, 10)})
    assert {scheduled: 1}[dataclasses.replace(scheduled)] == 1
