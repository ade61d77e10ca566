"""Who else computes log-probs of given tokens from hidden states and a head, for any upstream gradient.

Each maker returns f(hidden (n, H), weight (V, H), token_ids (n,)) -> log_probs (n,). Settings: where a CPU was measured, the
fastest found; on a GPU the authors' own default, which is what their trainers run.
"""

import os

import torch

from bench import peers

PEERS = peers.Registry()


def _plain(hidden, weight, token_ids):
    logits = hidden @ weight.T
    return torch.log_softmax(logits.float(), -1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


@PEERS.add()
def eager(device):
    """Plain torch: 6NVH operations, all logits and two more tensors of their size."""
    return _plain


@PEERS.add(compiles=True)
def compiled(device):
    """torch.compile of `eager`, static shapes."""
    return peers.compiled(_plain, device)


@PEERS.add()
def torch_linear_ce(device):
    """F.linear_cross_entropy per token, chunked; on a GPU torch's automatic chunks."""
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    measured = {"batch_chunk_size": 512, "chunking_method": None, "acc_policy": "balanced"}
    options = LinearCrossEntropyOptions(**(measured if device.type == "cpu" else {}))
    return lambda hidden, weight, token_ids: -linear_cross_entropy(hidden, weight, token_ids, reduction="none", options=options)


@PEERS.add(package="liger-kernel")
def liger_scaled_ce(device):
    """LigerFusedLinearScaledCrossEntropy without its entropy: CuTe on an H100, chunks of 512 tokens elsewhere."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Function

    def log_probs(hidden, weight, token_ids):
        found = Function.apply(hidden, weight, token_ids, 1.0, -100, 1, False)
        return -(found if isinstance(found, torch.Tensor) else found[0])

    return log_probs


@PEERS.add(package="trl")
def trl(device):
    """The head behind TRL's add_fused_lm_head, without entropy; its vocabulary tile on a GPU, a smaller one on a CPU."""
    from trl.kernels import ChunkedLogProbFunction

    tile = 32768 if device.type == "cuda" else 4096
    return lambda hidden, weight, token_ids: ChunkedLogProbFunction.apply(hidden, weight, None, token_ids, 1.0, tile, None, 1.0, ())[0]


@PEERS.add(package="verl")
def verl_torch(device):
    """verl's FusedLinearForPPO, chunks of 512 tokens (its default)."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    module = FusedLinearForPPO(chunk_size=512, impl_backend="torch")
    return lambda hidden, weight, token_ids: module(hidden, weight, token_ids)[0]


@PEERS.add(package="verl", gpu=True, dtypes=("bfloat16", "float16"))
def verl_triton(device):
    """verl's fused Triton kernels, default backward (split over the vocabulary)."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, token_ids: linear_cross_entropy(hidden, weight, token_ids, 1.0, "none")[0]


def _cce(filter_eps):
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, token_ids: -linear_cross_entropy(hidden, weight, token_ids, reduction="none", filter_eps=filter_eps)


@PEERS.add(package="cut-cross-entropy", gpu=True)
def cce_exact(device):
    """Cut cross-entropy without gradient filtering."""
    return _cce(None)


@PEERS.add(package="cut-cross-entropy", gpu=True)
def cce_filtered(device):
    """Cut cross-entropy with its default gradient filtering: it drops blocks of small gradients, so it is not exact."""
    return _cce("auto")


@PEERS.add(package="unsloth-zoo")
def unsloth(device):
    """Unsloth's fused_linear_logprobs."""
    os.environ.setdefault("UNSLOTH_IS_PRESENT", "1")  # what its parent package sets; importing that one would patch torch for every peer
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_logprobs

    return fused_linear_logprobs
