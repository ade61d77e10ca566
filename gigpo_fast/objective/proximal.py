"""Proximal log-probs without a forward of the proximal policy: between the sampling and the current policy, by how old a token is."""

import torch
from torch import Tensor

from .. import checks


def proximal_log_probs(
    log_probs: Tensor,  # any shape, float, of the current policy
    rollout_log_probs: Tensor,  # the same shape, of the policy that sampled
    versions: Tensor,  # the same shape, int64, which version sampled the token; negative: none did (a prompt)
    version: int,  # of the current policy; the proximal one is the version before
    *,
    linear: bool = False,
) -> Tensor:  # the same shape and log_probs' dtype, without gradient
    """An interpolation by version, (1 - a) old + a new, or with `linear` that of the probabilities: decoupled PPO's old_log_probs.

        a = ((version - 1 - versions) / (version - versions)).clamp(0, 1) where 0 <= versions < version, else 0
        (1 - a) * rollout_log_probs + a * log_probs          # linear: log((1 - a) exp(rollout_log_probs) + a exp(log_probs) + 1e-10)

    A token of the current version has a = 0: its proximal policy is the one that sampled it (AReaL's code; its comment promises 1). The
    ratio to the sampling policy remains as a weight: TIS. Float64 inside for float64 log-probs, else float32.
    Source: AReaL's prox_logp approximations (arXiv 2505.24298 has the decoupled loss).
    """
    function = "proximal_log_probs"
    checks.tensor(function, "log_probs", log_probs, dtypes=checks.FLOATS, fix="pass the current policy's log-probs")
    shape, device = tuple(log_probs.shape), log_probs.device
    fix = "one a token"
    checks.tensor(function, "rollout_log_probs", rollout_log_probs, shape=shape, dtypes=checks.FLOATS, device=device, fix=fix)
    checks.tensor(function, "versions", versions, shape=shape, dtypes=(torch.int64,), device=device, fix=fix)
    if checks.whole(version) is None or version < 0:
        checks.fail(function, "version", "an int >= 0", version, "pass the current policy's version, the number of updates so far")
    dtype = checks.compute_dtype(log_probs.dtype)
    new, old = log_probs.detach().to(dtype), rollout_log_probs.detach().to(dtype)
    stale = (versions >= 0) & (versions < version)
    age = torch.where(stale, version - versions, 1).to(dtype)
    share = torch.where(stale, ((age - 1) / age).clamp(0, 1), 0.0)
    if linear:
        found = torch.log((1 - share) * torch.exp(old) + share * torch.exp(new) + 1e-10)
    else:
        found = torch.where(share > 0, (1 - share) * old + share * new, old)
    return found.to(log_probs.dtype)
