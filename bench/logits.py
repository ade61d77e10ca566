"""Who else turns logits into log-probs of given tokens: f(logits (n, V), token_ids (n,)) -> log_probs (n,)."""

import torch

from bench import peers

PEERS = peers.Registry()


def _plain(logits, token_ids):
    return torch.log_softmax(logits.float(), -1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


@PEERS.add()
def eager(device):
    """Plain torch, in float32."""
    return _plain


@PEERS.add(compiles=True)
def compiled(device):
    """torch.compile of `eager`, static shapes."""
    return peers.compiled(_plain, device)


@PEERS.add(package="flash-attn", gpu=True, overwrites=True)
def flash_attn(device):
    """flash-attn's Triton cross-entropy, gradient in place."""
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda logits, token_ids: -cross_entropy_loss(logits, token_ids, inplace_backward=True)[0]


@PEERS.add(package="liger-kernel", gpu=True, overwrites=True)
def liger_ce(device):
    """Liger's Triton cross-entropy, which writes the gradient over the logits in its forward."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    return lambda logits, token_ids: -LigerCrossEntropyFunction.apply(logits, token_ids, None, -100, 0.0, 0.0, "none")[0]


@PEERS.add(package="trl", gpu=True)
def trl(device):
    """TRL's Triton log-probs and entropy; the entropy comes with it."""
    from trl.kernels import selective_log_softmax_and_entropy

    return lambda logits, token_ids: selective_log_softmax_and_entropy(logits, token_ids)[0]


@PEERS.add(package="quack-kernels", gpu=True, overwrites=True)
def quack(device):
    """quack's CuTe cross-entropy, gradient in place."""
    from quack.cross_entropy import cross_entropy

    return lambda logits, token_ids: -cross_entropy(logits, token_ids, reduction="none", inplace_backward=True)
