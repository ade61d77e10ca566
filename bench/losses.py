"""Who else computes the clipped policy loss from hidden states and a head, or the plain negative log-likelihood.

Policy makers return f(Batch) -> loss, likelihood makers f(hidden, weight, token_ids) -> mean loss. Every head of `heads` is a
policy peer too, over the trained tokens only, with the loss in torch behind it.
"""

import functools

import torch
from torch import Tensor

from bench import heads, peers
from bench.peers import Peer, Registry
from bench.shapes import CLIP, Batch
from gigpo_fast.loss import linear_policy_loss, plan_tokens
from gigpo_fast.recipes import recipe

POLICY, LIKELIHOOD = Registry(), Registry()
TOKENS_OF_A_LIGER_CHUNK = 1024


def clipped(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The mean over tokens of the clipped loss, in plain torch."""
    ratio = (log_probs - old_log_probs).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()


def _dense(hidden: Tensor, weight: Tensor, token_ids: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    log_probs = torch.log_softmax((hidden @ weight.T).float(), -1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    ratio = (log_probs - old_log_probs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
    return (loss * mask).sum() / mask.sum()


def _everything(batch: Batch) -> tuple[Tensor, ...]:
    return batch.hidden, batch.weight, batch.token_ids, batch.old_log_probs, batch.advantages, batch.mask


@POLICY.add()
def eager(device):
    """Plain torch over all tokens, as a trainer without a fused head does it."""
    return lambda batch: _dense(*_everything(batch))


@POLICY.add(compiles=True)
def compiled(device):
    """torch.compile of `eager`, static shapes."""
    function = peers.compiled(_dense, device)
    return lambda batch: function(*_everything(batch))


@POLICY.add(package="gigpo-fast", compacts=True)
def ours_without_idle_tokens(device):
    """This package with plan_tokens(score_idle=False): tokens without advantage are not even scored, and no metric counts them."""
    objective = recipe("grpo").objective

    def loss(batch: Batch) -> Tensor:
        plan = plan_tokens(batch.mask, batch.advantages, objective=objective, score_idle=False)
        given = batch.hidden, batch.weight, batch.token_ids, batch.advantages, batch.mask
        return linear_policy_loss(*given, old_log_probs=batch.old_log_probs, objective=objective, plan=plan).loss

    return loss


@functools.cache
def _liger(device: torch.device, tokens: int):
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=device.type == "cuda",  # compiling makes it no faster on a CPU
        use_ref_model=False,
        chunk_size=max(1, TOKENS_OF_A_LIGER_CHUNK // tokens),  # one sequence, its default, starves the matrix products
        loss_type="bnpo",
        epsilon_low=CLIP,
        epsilon_high=CLIP,
    )
    loss.temperature = 1.0
    return loss


@POLICY.add(package="liger-kernel")
def liger_grpo(device):
    """LigerFusedLinearGRPOLoss, token mean ("bnpo"), sequences of 1024 tokens together."""
    _liger(device, 1)

    def loss(batch: Batch) -> Tensor:
        module = _liger(device, batch.mask.shape[1])
        advantages, mask = batch.advantages[:, 0].contiguous(), batch.mask.float()
        return module(batch.hidden, batch.weight, batch.token_ids, mask, advantages, old_per_token_logps=batch.old_log_probs)[0]

    return loss


@POLICY.add(package="liger-kernel", compacts=True)
def liger_grpo_compacted(device):
    """The same over the trained tokens, gathered into shorter rows."""
    _liger(device, 1)

    def loss(batch: Batch) -> Tensor:
        gathered = lambda value: value[batch.mask].view(value.shape[0], -1, *value.shape[2:])  # noqa: E731
        token_ids, old = gathered(batch.token_ids), gathered(batch.old_log_probs)
        module = _liger(device, token_ids.shape[1])
        advantages, mask = batch.advantages[:, 0].contiguous(), torch.ones_like(old)
        return module(gathered(batch.hidden), batch.weight, token_ids, mask, advantages, old_per_token_logps=old)[0]

    return loss


@POLICY.add(package="liger-kernel", gpu=True)
def liger_triton_grpo(device):
    """The matrix product in torch and Liger's Triton GRPO loss on its logits, gradient in place (its default)."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    def loss(batch: Batch) -> Tensor:
        logits = torch.nn.functional.pad(batch.hidden, (0, 0, 0, 1)) @ batch.weight.T  # it wants one position more than tokens
        options = {"temperature": 1.0, "beta": 0.0, "eps_low": CLIP, "eps_high": CLIP, "loss_type": "bnpo", "reduce": True}
        advantages = batch.advantages[:, 0].contiguous()
        return triton_grpo_loss(logits, batch.old_log_probs, None, batch.token_ids, advantages, batch.mask.float(), **options)[0]

    return loss


def _with_head(head: Peer) -> Peer:
    """The policy loss over trained tokens behind a head."""

    def make(device):
        log_probs = head.make(device)

        def loss(batch: Batch) -> Tensor:
            mask = batch.mask
            found = log_probs(batch.hidden[mask], batch.weight, batch.token_ids[mask])
            return clipped(found, batch.old_log_probs[mask], batch.advantages[mask])

        return loss

    has_dense_twin = head.name in ("eager", "compiled")
    name = f"{head.name}_compacted" if has_dense_twin else head.name
    return head._replace(name=name, make=make, compacts=has_dense_twin, dtypes=("float32",) if head.name in ROUNDED else head.dtypes)


# Per token these return log-probs in the dtype of their inputs. In bf16 that puts the ratio off by up to 3 %, a gradient by 7 %.
ROUNDED = ("torch_linear_ce",)
POLICY.update({peer.name: peer for peer in map(_with_head, heads.PEERS.values())})


def _mean_of(head: Peer) -> Peer:
    def make(device):
        log_probs = head.make(device)
        return lambda hidden, weight, token_ids: -log_probs(hidden, weight, token_ids).mean()

    return head._replace(make=make)


LIKELIHOOD.update({name: _mean_of(heads.PEERS[name]) for name in ("eager", "compiled")})


@LIKELIHOOD.add()
def torch_linear_ce(device):
    """F.linear_cross_entropy, mean: gradients in the forward, 6NVH; on a GPU torch's automatic chunks."""
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    measured = {"batch_chunk_size": 512, "chunking_method": None, "acc_policy": "balanced"}
    options = LinearCrossEntropyOptions(**(measured if device.type == "cpu" else {}))
    return lambda hidden, weight, token_ids: linear_cross_entropy(hidden, weight, token_ids, options=options)


@LIKELIHOOD.add(package="liger-kernel", gpu=True)
def liger_linear_ce(device):
    """LigerFusedLinearCrossEntropyLoss, sums in float32."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    module = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    return lambda hidden, weight, token_ids: module(weight, hidden, token_ids)


@LIKELIHOOD.add(package="cut-cross-entropy", gpu=True)
def cce_exact(device):
    """Cut cross-entropy without gradient filtering."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, token_ids: linear_cross_entropy(hidden, weight, token_ids, filter_eps=None)


@LIKELIHOOD.add(package="cut-cross-entropy", gpu=True)
def cce_filtered(device):
    """Cut cross-entropy with its default gradient filtering: not exact."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, token_ids: linear_cross_entropy(hidden, weight, token_ids, filter_eps="auto")


@LIKELIHOOD.add(package="quack-kernels", gpu=True, dtypes=("bfloat16",))
def quack(device):
    """quack's chunked linear cross-entropy; on an H100 it picks its scaled-exponent pipeline."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


@LIKELIHOOD.add(package="unsloth-zoo")
def unsloth(device):
    """Unsloth's fused linear cross-entropy, gradient in the forward."""
    heads.unsloth(device)
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_cross_entropy

    return lambda hidden, weight, token_ids: fused_linear_cross_entropy(hidden, weight, None, token_ids, divisor=token_ids.shape[0])
