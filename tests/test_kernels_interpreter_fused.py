"""The fused loss and the log-probs on the Triton path, in the interpreter, against the torch path. Started by test_kernels_spawn.py.

This covers what lies between the kernels: the plan, the fused twin of the clip family and when it is taken, chunks, and the metrics.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported; test_kernels_spawn.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

import torch

from gigpo_fast import backend
from gigpo_fast import objective as blocks
from gigpo_fast.logprob import Head, linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.metrics import as_floats
from gigpo_fast.ops.clip_twin import twin_options

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of every NaN and infinity on the way
B, T, H, V = 3, 9, 8, 37
CLIP = blocks.Clip(0.1, 0.3, 3.0, 1.5)
TWINS = {
    "plain": blocks.PolicyObjective(),
    "everything": blocks.PolicyObjective(
        blocks.TokenRatio(2.0), CLIP, blocks.KLPenalty(0.1, blocks.K3(1.0, 0.5)), None, blocks.EntropyBonus(0.01)
    ),
    "sequence means": blocks.PolicyObjective(surrogate=CLIP, aggregation=blocks.SequenceMeanTokenMean()),
}
OTHERS = {
    "sequence ratio": blocks.PolicyObjective(blocks.SequenceRatio(), aggregation=blocks.SequenceMeanTokenMean()),
    "reinforce": blocks.PolicyObjective(blocks.NoRatio(), blocks.Reinforce()),
    "k2": blocks.PolicyObjective(divergence=blocks.KLPenalty(0.1, blocks.K2())),
    "weighted KL": blocks.PolicyObjective(divergence=blocks.KLPenalty(0.1, importance_weighted=True)),
}


def run(objective, path, *, old=True, chunk_bytes=None):
    """(loss, d_hidden, d_weight, d_bias, metrics) on one path; zero advantages, an untrained NaN and an infinite old log-prob among the tokens."""
    g = torch.Generator().manual_seed(1)
    hidden, weight, bias = (torch.randn(*shape, generator=g) for shape in ((B, T, H), (V, H), (V,)))
    ids, advantages = torch.randint(V, (B, T), generator=g), torch.randn(B, T, generator=g)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 3:], advantages[0, :2] = False, 0.0
    hidden[1, 4] = torch.nan
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    near = torch.log_softmax(hidden.detach() @ weight.detach().T + bias.detach(), -1).gather(-1, ids[..., None])[..., 0]
    old_log_probs = (near + 0.4 * torch.randn(B, T, generator=g)) if old else None
    ref = {"ref_log_probs": near + 0.3} if objective.needs_reference else {}
    if old:
        old_log_probs[0, 4] = -torch.inf
    with backend.use(path):
        head = Head(leaves[1], leaves[2], logit_scale=1.2, softcap=6.0)
        out = linear_policy_loss(
            leaves[0],
            head,
            ids,
            advantages,
            mask,
            old_log_probs=old_log_probs,
            temperature=0.8,
            objective=objective,
            chunk_bytes=chunk_bytes,
            **ref,
        )
        return out.loss.detach(), *torch.autograd.grad(out.loss, leaves), out.metrics


@pytest.fixture(autouse=True)
def _metadata_only():
    import gigpo_fast

    with gigpo_fast.validation("metadata"):  # an infinite old log-prob is refused under full validation
        yield


@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("name", [*TWINS, *OTHERS])
def test_the_triton_path_gives_what_the_torch_path_gives(name, old):
    objective = {**TWINS, **OTHERS}[name]
    got, want = run(objective, "triton", old=old), run(objective, "torch", old=old)
    for mine, other in zip(got[:4], want[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-6)
    mine, other = as_floats(got[4]), as_floats(want[4])
    assert mine == pytest.approx(other, rel=2e-5, abs=1e-5)
    assert mine["n_active"] == 2 * T + 3 and (mine["nonfinite_tokens"] == 1) == old


@pytest.mark.parametrize("path", ["triton", "torch"])
@pytest.mark.parametrize("name", [*TWINS, *OTHERS])
@pytest.mark.parametrize("cause", ["advantages", "old", "ref", "hidden", "id", "dropped"])
def test_nan_of_a_trained_token_shows_in_loss_gradients_and_count(cause, name, path):
    """On both paths, also of a token without a backward and of one whose infinite old log-prob takes it out of the policy term."""
    objective = {**TWINS, **OTHERS}[name]
    g = torch.Generator().manual_seed(1)
    hidden, weight, mask = torch.randn(2, 4, H, generator=g), torch.randn(V, H, generator=g), torch.ones(2, 4, dtype=torch.bool)
    ids, advantages, old, ref = torch.randint(V, (2, 4), generator=g), torch.ones(2, 4), torch.full((2, 4), -3.0), torch.full((2, 4), -2.0)
    if cause == "ref" and not objective.needs_reference:
        return
    if cause == "id":
        ids[1, 2] = V
    elif cause == "dropped":
        old[1, 2], advantages[1, 2] = -torch.inf, torch.nan
    else:
        {"advantages": advantages, "old": old, "ref": ref, "hidden": hidden}[cause][1, 2] = torch.nan
    if cause in ("old", "hidden", "id"):
        advantages[1] = 0.0
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    given = {"ref_log_probs": ref} if objective.needs_reference else {}
    with backend.use(path):
        out = linear_policy_loss(*leaves, ids, advantages, mask, old_log_probs=old, objective=objective, **given)
        out.loss.backward()
    assert bool(out.loss.isnan()) and all(bool(leaf.grad.isnan().any()) for leaf in leaves)
    assert as_floats(out.metrics)["nonfinite_tokens"] >= 1


def test_the_twin_serves_the_clip_family_and_nothing_else():
    assert all(twin_options(objective) is not None for objective in TWINS.values())
    assert all(twin_options(objective) is None for objective in OTHERS.values())


def test_chunks_change_nothing():
    small = 16 * (V * 4 + H * 8)
    for mine, other in zip(run(TWINS["everything"], "triton", chunk_bytes=small), run(TWINS["everything"], "triton"), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_log_probs_for_any_upstream_gradient():
    g = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(B, T, H, generator=g).requires_grad_(), torch.randn(V, H, generator=g).requires_grad_()
    ids, up = torch.randint(V, (B, T), generator=g), torch.randn(2, B, T, generator=g)
    found = {}
    for path in ("triton", "torch"):
        with backend.use(path):
            direct, fused = token_log_probs(hidden @ weight.T, ids, vocab_size=V), linear_token_log_probs(hidden, weight, ids)
        found[path] = [
            torch.autograd.grad((out.log_probs * up[0] + out.entropy * up[1]).sum(), (hidden, weight)) for out in (direct, fused)
        ]
    for mine, other in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-5)
