"""verl's own losses and ours on the same micro-batches: loss, gradient and metrics, through verl's registry and its ppo_loss."""

import functools
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.utils import losses

import gigpo_fast
from gigpo_fast.integrations.verl import ppo_loss, register, register_objective
from gigpo_fast.objective import Clip, PolicyObjective, SequenceMeanTokenMean, TopEntropy, Weighted
from tests.frameworks.verl_cases import AGGREGATIONS, ALONE, MODES, WHOLE, WIDTH, actor_config, close, dense, jagged_of, micro_batch

register()
# Statistics of the call (cov), or an average over its rows (geo_mean): verl's own answer depends on the split.
OF_THE_CALL = ("clip_cov", "kl_cov", "geo_mean")
INFOS = {"none": {}, "alone": {**ALONE, "loss_scale_factor": None}, "whole": {**WHOLE, "loss_scale_factor": 11}}


def call(name: str, b: dict, config, *, aggregation: str, weights: bool):
    log_probs = b["log_probs"].clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(name)(
        old_log_prob=b["old_log_probs"],
        log_prob=log_probs,
        advantages=b["advantages"],
        response_mask=b["response_mask"],
        loss_agg_mode=aggregation,
        config=config,
        rollout_is_weights=b["rollout_is_weights"] if weights else None,
    )
    loss.backward()
    return loss.detach(), log_probs.grad, metrics


def assert_same(got, want) -> None:
    close("loss", got[0], want[0])
    close("gradient", got[1], want[1])
    assert got[2].keys() == want[2].keys()
    for name, value in want[2].items():
        assert type(got[2][name]) is float
        close(name, got[2][name], value)


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("info", INFOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_registered_loss(mode, aggregation, info, weights):
    config = actor_config(mode)
    config.global_batch_info.update(INFOS[info])
    for seed in range(3):
        b = dense(seed)
        want = call(mode, b, config, aggregation=aggregation, weights=weights)
        assert_same(call(f"gigpo_fast_{mode}", b, config, aggregation=aggregation, weights=weights), want)


@pytest.mark.parametrize("mode", MODES)
def test_the_cases_reach_the_bounds(mode):
    """Else the comparison above would say nothing about them."""
    found = call(mode, dense(), actor_config(mode), aggregation="token-mean", weights=False)[2]
    moved = {"gpg": (), "sapo": ("ppo_kl",), "dro": ("ppo_kl",), "kl_cov": ("ppo_kl",), "clip_cov": ("ppo_kl", "pg_clipfrac")}
    moved |= {"gspo": ("ppo_kl", "pg_clipfrac"), "cispo": ("ppo_kl", "pg_clipfrac")}
    for name in moved.get(mode, ("ppo_kl", "pg_clipfrac", "pg_clipfrac_lower")):
        assert abs(found[f"actor/{name}"]) > 0.02, name


@pytest.mark.parametrize("mode", MODES)
def test_masked_values_do_not_matter(mode):
    config = actor_config(mode)
    clean, dirty = dense(), dense()
    for name, value in dirty.items():
        if name != "response_mask":
            dirty[name] = torch.where(dirty["response_mask"], value, float("nan"))
    torch.manual_seed(0)
    want = call(f"gigpo_fast_{mode}", clean, config, aggregation="seq-mean-token-mean", weights=True)
    got = call(f"gigpo_fast_{mode}", dirty, config, aggregation="seq-mean-token-mean", weights=True)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and got[2] == want[2]
    assert not got[1][~clean["response_mask"]].any()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in OF_THE_CALL])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_sum_to_the_whole(mode, aggregation):
    b, config = dense(), actor_config(mode)
    config.global_batch_info.update(WHOLE, loss_scale_factor=11)
    whole = call(f"gigpo_fast_{mode}", b, config, aggregation=aggregation, weights=True)
    parts = [
        call(f"gigpo_fast_{mode}", {k: v[rows] for k, v in b.items()}, config, aggregation=aggregation, weights=True)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    close("loss", sum(part[0] for part in parts), whole[0])
    close("gradient", torch.cat([part[1] for part in parts]), whole[1])


def test_without_a_trained_token_the_loss_is_zero():
    b, config = dense(), actor_config("vanilla")
    b["response_mask"][:] = False
    for aggregation in AGGREGATIONS:
        loss, gradient, _ = call("gigpo_fast_vanilla", b, config, aggregation=aggregation, weights=False)
        assert loss == 0 and not gradient.any()


def test_clip_cov_draws_as_many_as_verl_and_another_set_each_time():
    config = actor_config("clip_cov")
    object.__setattr__(config.policy_loss, "clip_cov_ratio", 0.1)
    b = dense()
    count = int(0.1 * int(b["response_mask"].sum()))
    all_gone = call("gigpo_fast_clip_cov", b, actor_config("clip_cov"), aggregation="token-sum", weights=False)[1]
    candidates = (all_gone == 0) & b["response_mask"]
    drawn = set()
    for seed in range(20):
        torch.manual_seed(seed)
        want = call("clip_cov", b, config, aggregation="token-sum", weights=False)[2]
        torch.manual_seed(seed)
        got = call("gigpo_fast_clip_cov", b, config, aggregation="token-sum", weights=False)
        close("pg_clipfrac", got[2]["actor/pg_clipfrac"], want["actor/pg_clipfrac"])
        close("pg_clipfrac", got[2]["actor/pg_clipfrac"], count / int(b["response_mask"].sum()))
        torch.manual_seed(seed)
        assert torch.equal(call("gigpo_fast_clip_cov", b, config, aggregation="token-sum", weights=False)[1], got[1])
        gone = (got[1] == 0) & b["response_mask"]
        assert not (gone & ~candidates).any()
        drawn.add(tuple(map(tuple, gone.nonzero().tolist())))
    assert len(drawn) > 3


def test_no_wait_for_the_device_but_one():
    class Items(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = {}
    for name in ("vanilla", "gigpo_fast_vanilla"):
        with Items() as items, gigpo_fast.validation("metadata"):
            call(name, dense(), actor_config("vanilla"), aggregation="token-mean", weights=False)
        counts[name] = items.count
    assert counts["vanilla"] == 3
    assert counts["gigpo_fast_vanilla"] == 0  # the packed vector is read as a whole, not number by number


# ppo_loss: policy term, entropy and KL together.


def both(mode: str, b: dict, *, nested: bool, weights: bool, info: dict, entropy: bool = True, as_jagged: bool = True, **settings):
    found = []
    for function in (losses.ppo_loss, ppo_loss):
        data, log_probs, entropies = micro_batch(b, nested=nested, weights=weights, info=info)
        given = jagged_of if as_jagged else (lambda flat: flat)
        output = {"log_probs": given(log_probs), **({"entropy": given(entropies)} if entropy else {})}
        loss, metrics = functools.partial(function, config=actor_config(mode, **settings))(model_output=output, data=data, dp_group=None)
        loss.backward()
        found.append((loss.detach(), log_probs.grad, entropies.grad, metrics))
    return found


def assert_same_answer(want, got, *, entropy_gradient: bool) -> None:
    close("loss", got[0], want[0])
    close("gradient of log_probs", got[1], want[1])
    if entropy_gradient:
        close("gradient of entropy", got[2], want[2])
    else:
        assert got[2] is None or not got[2].any()
        assert want[2] is None or not want[2].any()
    assert got[3].keys() == want[3].keys()
    for name, value in want[3].items():
        if name == "kl_coef":
            assert got[3][name] == value
            continue
        assert got[3][name].aggregation is value.aggregation, name
        assert type(got[3][name].values[0]) is float
        close(name, got[3][name].values, value.values)


KL_TYPES = [base + plus for base in ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3") for plus in ("", "+")]
TERMS = {"use_kl_loss": True, "kl_loss_coef": 0.3, "entropy_coeff": 0.02}


@pytest.mark.parametrize("nested", [False, True], ids=["padded", "nested"])
@pytest.mark.parametrize("info", ["alone", "whole"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_ppo_loss(mode, aggregation, info, nested):
    scale = 11 if info == "whole" else None
    settings = {"loss_agg_mode": aggregation, "loss_scale_factor": scale}
    for weights, terms in itertools.product((False, True), ({}, TERMS)):
        want, got = both(mode, dense(), nested=nested, weights=weights, info=WHOLE if info == "whole" else ALONE, **settings, **terms)
        assert_same_answer(want, got, entropy_gradient=bool(terms))


@pytest.mark.parametrize("kind", KL_TYPES)
def test_every_kl_type(kind):
    want, got = both("vanilla", dense(1), nested=True, weights=False, info=WHOLE, **{**TERMS, "kl_loss_type": kind})
    assert_same_answer(want, got, entropy_gradient=True)


@pytest.mark.parametrize("terms", [{}, {"use_kl_loss": True}, {"entropy_coeff": 0.1}, {"use_kl_loss": True, "kl_loss_coef": 0.0}])
def test_every_subset_of_terms(terms):
    want, got = both("gspo", dense(2), nested=True, weights=True, info=ALONE, loss_agg_mode="seq-mean-token-mean", **terms)
    assert_same_answer(want, got, entropy_gradient="entropy_coeff" in terms)


def test_flat_outputs_and_outputs_without_entropy():
    want, got = both("vanilla", dense(), nested=True, weights=False, info=WHOLE, entropy=False, as_jagged=False)
    assert_same_answer(want, got, entropy_gradient=False)
    assert "actor/entropy_loss" not in got[3]


def test_the_prefix_names_the_same_loss():
    data, log_probs, _ = micro_batch(dense(), nested=True, weights=False, info=WHOLE)
    one, _ = ppo_loss(actor_config("cispo"), {"log_probs": log_probs}, data)
    two, _ = ppo_loss(actor_config("gigpo_fast_cispo"), {"log_probs": log_probs}, data)
    assert one == two


@pytest.mark.parametrize("nested", [False, True], ids=["padded", "nested"])
def test_ppo_loss_ignores_what_is_masked(nested):
    clean, dirty = dense(), dense()
    for name, value in dirty.items():
        if name != "response_mask":
            dirty[name] = torch.where(dirty["response_mask"], value, float("nan"))
    found = []
    for b in (clean, dirty):
        data, log_probs, entropy = micro_batch(b, nested=nested, weights=True, info=WHOLE)
        loss, _ = ppo_loss(actor_config("sapo", **TERMS), {"log_probs": log_probs, "entropy": entropy}, data)
        loss.backward()
        found.append((loss.detach(), log_probs.grad, entropy.grad))
    for clean_value, dirty_value in zip(*found):
        assert torch.equal(clean_value, dirty_value)


# Objectives of one's own, and recipes.


def test_a_recipe_by_verls_denominators():
    b, config = dense(), actor_config("vanilla", clip_ratio_low=0.2, clip_ratio_high=0.2)
    config.global_batch_info.update(WHOLE)
    b["advantages"] = b["advantages"].clamp(min=0)  # verl's vanilla has a dual clip, the recipe has none
    want = call("vanilla", b, config, aggregation="token-mean", weights=True)
    got = call("gigpo_fast_recipe_grpo", b, config, aggregation="token-mean", weights=True)
    assert_same(got, want)
    with pytest.raises(ValueError, match="gigpo_fast_recipe_grpo: loss_agg_mode must be the objective's own, TokenMean, got 'token-sum'"):
        call("gigpo_fast_recipe_grpo", b, config, aggregation="token-sum", weights=False)
    config.global_batch_info["loss_scale_factor"] = 12
    name, own = "gigpo_fast_recipe_dr_grpo", gigpo_fast.recipes.recipe("dr_grpo").objective.aggregation.length
    with pytest.raises(ValueError, match=f"{name}: loss_scale_factor must be the objective's length, {own}, got 12"):
        call(name, b, config, aggregation="seq-mean-token-sum-norm", weights=False)


def test_an_objective_of_ones_own():
    objective = PolicyObjective(surrogate=Clip(0.3, 0.4), aggregation=SequenceMeanTokenMean())
    register_objective("mine", objective)
    register_objective("mine", PolicyObjective(surrogate=Clip(0.3, 0.4), aggregation=SequenceMeanTokenMean()))  # the same once more
    b, config = dense(), actor_config("vanilla", clip_ratio_low=0.3, clip_ratio_high=0.4, clip_ratio_c=1e9)
    want = call("vanilla", b, config, aggregation="seq-mean-token-mean", weights=False)
    assert_same(call("gigpo_fast_mine", b, config, aggregation="seq-mean-token-mean", weights=False), want)
    with pytest.raises(ValueError, match="register: the policy loss gigpo_fast_mine must be free or ours, got held by"):
        register_objective("mine", PolicyObjective())
    uncertain = PolicyObjective(surrogate=Weighted(Clip(), TopEntropy()))
    with pytest.raises(ValueError, match=r"gigpo_fast_other: objective must be one of log-probs and advantages alone, .*\['entropy'\]"):
        register_objective("other", uncertain)


# Refusals.

NESTED = {"nested": True, "weights": False, "info": WHOLE}


def refused(match: str, mode: str = "vanilla", *, change=lambda data, output: None, settings=None, info=WHOLE) -> None:
    data, log_probs, entropy = micro_batch(dense(), nested=True, weights=False, info=info)
    output = {"log_probs": log_probs, "entropy": entropy}
    change(data, output)
    with pytest.raises(ValueError, match=match), gigpo_fast.validation("full"):
        ppo_loss(actor_config(mode, **(settings or {})), output, data)


def test_refusals():
    refused("ppo_loss: policy_loss.loss_mode must be .*, got bypass_mode, which makes them anew from every micro-batch; use", "bypass_mode")
    refused("ppo_loss: policy_loss.loss_mode must be one of .*, got 'novel'; use verl's own ppo_loss", "novel")
    without = lambda name: lambda data, output: (data if name in data else output).pop(name)  # noqa: E731
    refused(r"ppo_loss: data\['ref_log_prob'\] must be there with use_kl_loss=True", change=without("ref_log_prob"), settings=TERMS)
    refused(r"ppo_loss: model_output\['entropy'\] must be there with entropy_coeff=0.02", change=without("entropy"), settings=TERMS)
    refused("ppo_loss: data must be a micro-batch with dp_size, got one without dp_size", change=without("dp_size"))
    refused("ppo_loss: data must be a micro-batch with advantages", change=without("advantages"))
    refused("ppo_loss: kl_loss_type must be one of .*, got 'full'; the exact", settings={**TERMS, "kl_loss_type": "full"})
    refused(
        r"ppo_loss: config.global_batch_info\['batch_num_tokens'\] must be given with dp_size 2 for TokenMean",
        info={**WHOLE, "batch_num_tokens": None},
    )
    refused("must be > 0, got 0; leave out batches in which nothing is trained", info={**WHOLE, "batch_num_tokens": 0})

    def shorter(data, output):
        output["log_probs"] = output["log_probs"][:-1]

    refused(r"ppo_loss: model_output\['log_probs'\] must be \(47,\) values, one a token of prompts and responses", change=shorter)

    def empty_prompt(data, output):
        sizes = (0, 1, 4, 2, 5, 5)  # as many tokens in all
        data["prompts"] = torch.nested.nested_tensor([torch.arange(size) for size in sizes], layout=torch.jagged)

    refused("must be of at least one token each, got 1 empty ones", change=empty_prompt)

    def moved(data, output):
        sizes = (9, 7, 4, 0, 1, 9)
        data["advantages"] = torch.nested.nested_tensor([torch.zeros(size) for size in sizes], layout=torch.jagged)

    refused(r"data\['advantages'\] must be as long as the responses", change=moved)


def test_refusals_of_a_registered_loss():
    b, config = dense(), actor_config("vanilla")
    with pytest.raises(ValueError, match="gigpo_fast_vanilla: loss_agg_mode must be one of .*, got 'mean'"):
        call("gigpo_fast_vanilla", b, config, aggregation="mean", weights=False)
    with pytest.raises(ValueError, match="gigpo_fast_vanilla: config must be verl's ActorConfig, got None"):
        call("gigpo_fast_vanilla", b, None, aggregation="token-mean", weights=False)
    config.global_batch_info["tokens"] = 3
    with pytest.raises(ValueError, match=r"config.global_batch_info must be a dict of .*, got also \['tokens'\]"):
        call("gigpo_fast_vanilla", b, config, aggregation="token-mean", weights=False)
    soft = {**b, "response_mask": b["response_mask"] * 0.5}
    with pytest.raises(ValueError, match="response_mask must be 0 or 1 everywhere"), gigpo_fast.validation("full"):
        call("gigpo_fast_vanilla", soft, actor_config("vanilla"), aggregation="token-mean", weights=False)
    whole = {**b, "response_mask": b["response_mask"].long()}
    got = call("gigpo_fast_vanilla", whole, actor_config("vanilla"), aggregation="token-mean", weights=False)
    assert_same(got, call("vanilla", whole, actor_config("vanilla"), aggregation="token-mean", weights=False))
    assert WIDTH == b["log_probs"].shape[1]
