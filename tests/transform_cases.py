"""Every public function that could be differentiated, beside plain torch, as functions of their differentiable inputs.

A case is (ours, plain, leaves): both take the leaves and return one number, curved in all of them.
"""

import torch

from gigpo_fast import advantage, distributed, logprob, loss, pairwise, reward
from gigpo_fast.logprob import Head
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective
from tests.loss_helpers import make_batch

FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
PAIRS = pairwise.PairwiseObjective(beta=0.5)
B = make_batch((2, 4), hidden=3, vocabulary=7, dtype=torch.float64)
LOGITS = B.hidden @ B.weight.T + B.bias
HEAD = (B.hidden, B.weight, B.bias)
ORDER = torch.tensor([[0, 1]])
TEMPERATURE = 0.5 + torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain_rows(logits, *, softcap=None, temperature=1.0):
    """(log_probs, entropy, sum of squared probabilities) by log_softmax."""
    z = softcap * torch.tanh(logits / softcap) if softcap else logits
    log_p = torch.log_softmax(z / temperature, -1)
    return log_p.gather(-1, B.token_ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1), log_p.exp().square().sum(-1)


def curved(log_probs, entropy):
    """One number that is curved in both."""
    return (log_probs.square() * B.weights + entropy * log_probs).sum()


def plain_clip(log_probs):
    """recipe("grpo"): clip 0.2, token mean."""
    ratio = torch.exp(log_probs - B.old)
    terms = torch.maximum(-B.advantages * ratio, -B.advantages * ratio.clamp(0.8, 1.2))
    return torch.where(B.mask, terms, 0).sum() / B.mask.sum()


def plain_full(log_probs, entropy):
    """FULL, by hand."""
    ratio, apart = torch.exp(log_probs - B.old), B.ref - log_probs
    terms = torch.maximum(-B.advantages * ratio, -B.advantages * ratio.clamp(0.9, 1.3))
    terms = torch.where(B.advantages < 0, torch.minimum(terms, -2.0 * B.advantages), terms)
    terms = terms + 0.1 * (torch.exp(apart) - apart - 1) - 0.02 * entropy
    return torch.where(B.mask, terms, 0).sum() / B.mask.sum()


def plain_dpo(scores):
    """PAIRS of two responses, by hand."""
    d = scores - REF
    return -torch.nn.functional.logsigmoid(0.5 * (d[0] - d[1]))


def logits_of(hidden, weight, bias):
    return hidden @ weight.T + bias


def summed(log_probs):
    return torch.where(B.mask, log_probs, 0).sum(-1)


SUMS = summed(B.log_probs)
REF = SUMS + 0.3
KEEP = {"old_log_probs": B.old}
ALL = {"old_log_probs": B.old, "ref_log_probs": B.ref, "objective": FULL}


MODULE = loss.LinearPolicyLoss(torch.nn.Linear(3, 7, dtype=torch.float64), FULL)


def module_loss(hidden, weight, bias):
    """LinearPolicyLoss with these parameters, as torch.func.functional_call has it."""
    given = {"old_log_probs": B.old, "ref_log_probs": B.ref}
    parameters = {"lm_head.weight": weight, "lm_head.bias": bias}
    return torch.func.functional_call(MODULE, parameters, (hidden, B.token_ids, B.advantages, B.mask), given).loss


def linear_call(function, **keywords):
    return lambda h, w, b: function(h, Head(w, b), B.token_ids, B.advantages, B.mask, **keywords).loss


def statistics(found):
    return (found.log_probs * found.entropy * found.sum_squared_probs).sum()


CASES = {
    "logprob.token_log_probs": (
        lambda z: curved(*logprob.token_log_probs(z, B.token_ids, softcap=4.0, temperature=TEMPERATURE)),
        lambda z: curved(*plain_rows(z, softcap=4.0, temperature=TEMPERATURE[..., None])[:2]),
        (LOGITS,),
    ),
    "logprob.linear_token_log_probs": (
        lambda h, w, b: curved(*logprob.linear_token_log_probs(h, Head(w, b, softcap=4.0), B.token_ids, temperature=0.7)),
        lambda h, w, b: curved(*plain_rows(logits_of(h, w, b), softcap=4.0, temperature=0.7)[:2]),
        HEAD,
    ),
    "logprob.token_statistics": (
        lambda z: statistics(logprob.token_statistics(z, B.token_ids)) + z.square().sum(),
        lambda z: torch.stack(plain_rows(z.detach())).prod(0).sum() + z.square().sum(),
        (LOGITS,),
    ),
    "logprob.linear_token_statistics": (
        lambda h: statistics(logprob.linear_token_statistics(h, Head(B.weight, B.bias), B.token_ids)) + h.square().sum(),
        lambda h: torch.stack(plain_rows(logits_of(h.detach(), B.weight, B.bias))).prod(0).sum() + h.square().sum(),
        (B.hidden,),
    ),
    "loss.policy_loss": (
        lambda x, e: loss.policy_loss(x, B.advantages, B.mask, entropy=e * e, **ALL).loss,
        lambda x, e: plain_full(x, e * e),
        (B.log_probs, B.entropy),
    ),
    "loss.PolicyLoss": (
        lambda x, e: loss.PolicyLoss(FULL)(x, B.advantages, B.mask, entropy=e * e, old_log_probs=B.old, ref_log_probs=B.ref).loss,
        lambda x, e: plain_full(x, e * e),
        (B.log_probs, B.entropy),
    ),
    "loss.grpo_loss": (lambda x: loss.grpo_loss(x, B.advantages, B.mask, **KEEP).loss, plain_clip, (B.log_probs,)),
    "loss.gigpo_loss": (lambda x: loss.gigpo_loss(x, B.advantages, B.mask, **KEEP).loss, plain_clip, (B.log_probs,)),
    "loss.linear_policy_loss": (linear_call(loss.linear_policy_loss, **ALL), lambda *x: plain_full(*plain_rows(logits_of(*x))[:2]), HEAD),
    "loss.LinearPolicyLoss": (module_loss, lambda *x: plain_full(*plain_rows(logits_of(*x))[:2]), HEAD),
    "loss.linear_grpo_loss": (
        linear_call(loss.linear_grpo_loss, **KEEP),
        lambda *x: plain_clip(plain_rows(logits_of(*x))[0]),
        HEAD,
    ),
    "loss.linear_gigpo_loss": (
        linear_call(loss.linear_gigpo_loss, **KEEP),
        lambda *x: plain_clip(plain_rows(logits_of(*x))[0]),
        HEAD,
    ),
    "pairwise.sequence_log_probs": (
        lambda x: pairwise.sequence_log_probs(x, B.mask).log_probs.square().sum(),
        lambda x: summed(x).square().sum(),
        (B.log_probs,),
    ),
    "pairwise.linear_sequence_log_probs": (
        lambda h, w, b: pairwise.linear_sequence_log_probs(h, Head(w, b), B.token_ids, B.mask).log_probs.square().sum(),
        lambda *x: summed(plain_rows(logits_of(*x))[0]).square().sum(),
        HEAD,
    ),
    "pairwise.pairwise_loss": (
        lambda x: pairwise.pairwise_loss(x, ORDER, ref_log_probs=REF, objective=PAIRS).loss,
        plain_dpo,
        (SUMS,),
    ),
    "pairwise.linear_pairwise_loss": (
        lambda h, w, b: (
            pairwise.linear_pairwise_loss(h, Head(w, b), B.token_ids, B.mask, ORDER, ref_log_probs=REF, objective=PAIRS).loss
        ),
        lambda *x: plain_dpo(summed(plain_rows(logits_of(*x))[0])),
        HEAD,
    ),
    "pairwise.response_loss": (
        lambda x: pairwise.response_loss(x, torch.tensor([True, False]), ref_log_probs=REF, objective=PAIRS).loss,
        lambda x: -torch.nn.functional.logsigmoid(0.5 * (x - REF) * torch.tensor([1.0, -1.0])).mean(),
        (SUMS,),
    ),
    "pairwise.pseudo_rewards": (
        lambda x: pairwise.pseudo_rewards(x, REF, divergence=pairwise.ForwardKL()).sum() + x.square().sum(),
        lambda x: torch.exp(REF - x.detach()).sum() + x.square().sum(),
        (SUMS,),
    ),
    "pairwise.sorted_scores": (
        lambda x: pairwise.sorted_scores(x, REF, torch.tensor([[1, 0]])).square().sum(),
        lambda x: (x[1] - x[0]).square() + (REF[1] - REF[0]).square(),
        (SUMS,),
    ),
    "distributed.gather_rows": (
        lambda x: distributed.gather_rows(x, sum_gradients=True).square().sum(),
        lambda x: x.square().sum(),
        (B.log_probs,),
    ),
}
# Functions of rewards and advantages: constants all of them, but for one that moves numbers about.
GROUP, CONSTANT = torch.tensor([0, 0, 0, 1, 1, 1]), torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
CASES["advantage.to_tokens"] = (
    lambda x: advantage.to_tokens(x, GROUP.new_tensor([[0, 1, -1], [5, 5, 2]])).square().sum(),
    lambda x: torch.where(torch.tensor([1, 1, 0, 1, 1, 1]) > 0, x[[0, 1, 0, 5, 5, 2]], 0).square().sum(),
    (CONSTANT,),
)
CONSTANTS = {
    "group_advantages": lambda x: advantage.group_advantages(x, GROUP, scale="std"),
    "discounted_returns": lambda x: advantage.discounted_returns(x, GROUP, gamma=0.9),
    "gigpo_advantages": lambda x: advantage.gigpo_advantages(x, GROUP, GROUP // 2, GROUP, gamma=0.9).advantages,
    "whiten": lambda x: advantage.whiten(x.view(2, 3), torch.ones(2, 3, dtype=torch.bool)),
    "kl_rewards": lambda x: reward.kl_rewards(x.view(2, 3), 0.5 * x.detach().view(2, 3), torch.ones(2, 3, dtype=torch.bool), coefficient=0.1),
    "weighted_sum": lambda x: reward.weighted_sum(x.view(3, 2)),
    "score_at_last_token": lambda x: reward.score_at_last_token(x[:2], torch.ones(2, 3, dtype=torch.bool)),
}
# Their results carry no derivative whatever goes in: labels, plans, counts, values and classes that hold them.
WITHOUT = {
    "distributed": {"Denominator", "equal_row_counts", "global_denominator", "head_of_dtensor", "with_all_rows"},
    "logprob": {"Head", "TokenLogProbs", "TokenStatistics"},
    "loss": {"Denominator", "Head", "LossOutput", "Plan", "plan_tokens", "rows_that_matter"},
    "pairwise": {"NegativeLogLikelihood", "PairwiseObjective", "PairwiseOutput", "Score", "SequenceLogProbs", "all_pairs", "halves"},
}
# Formulas in plain torch that the losses above are made of.
BLOCKS = {name for name, value in vars(pairwise).items() if isinstance(value, type) and issubclass(value, (pairwise.Link, pairwise.Transform))}
