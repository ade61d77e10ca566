"""Preference losses by name, for pairwise.pairwise_loss and pairwise.response_loss."""

from ..objective import NegativeLogLikelihood as TokenNLL
from ..objective import NoRatio, PolicyObjective, Reinforce, SequenceMeanTokenSum, SurrogateSum
from ..pairwise import (
    AlphaDivergence,
    Hinge,
    LabelKL,
    Logistic,
    LogisticSigmoidMix,
    LogOdds,
    NegativeLogLikelihood,
    PairClip,
    PairwiseObjective,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
)
from .base import Parts
from .base import register_preference as register

_FREE = Score(reference=0.0)
_DPO = "Direct Preference Optimization: Your Language Model is Secretly a Reward Model (arXiv 2305.18290)"
_IPO = "A General Theoretical Paradigm to Understand Learning from Human Preferences (arXiv 2310.12036)"
_RPO = "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer (arXiv 2405.16436)"
_CPL = "Contrastive Preference Learning: Learning from Human Feedback without RL (arXiv 2310.13639)"
_EGPO = (
    "Extragradient Preference Optimization (EGPO): Beyond Last-Iterate Convergence for Nash Learning from Human Feedback (arXiv 2503.08942)"
)
_APO = "Anchored Preference Optimization and Contrastive Revisions (arXiv 2408.06266)"
_AOT = "Distributional Preference Alignment of LLMs via Optimal Transport (arXiv 2406.05882)"
_TPO = "Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization (arXiv 2405.16681)"
_DNO = "Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences (arXiv 2404.03715)"


@register(_DPO)
def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Parts:
    """DPO: -log sigma(beta (d_chosen - d_rejected)), d = log pi / ref of the whole response (equation 7). beta 0.1: the paper's section 6.

    label_smoothing is conservative DPO. Without a reference (COMAL's reference_free): Score(reference=0).
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), beta=beta))


@register("Provably Robust DPO: Aligning Language Models with Noisy Feedback (arXiv 2403.00409)")
def robust_dpo(*, beta: float = 0.1, flip_rate: float = 0.1) -> Parts:
    """DPO whose expectation under labels flipped with `flip_rate` is that of clean ones. 0.1 is the paper's noise."""
    return Parts(PairwiseObjective(Robust(flip_rate), beta=beta))


@register(_IPO)
def ipo(*, tau: float = 0.1, per_token: bool = False) -> Parts:
    """IPO: (d_chosen - d_rejected - 1 / (2 tau))^2 (equation 17).

    Sums over the response, as the paper and COMAL; TRL and OpenRLHF's successor divide by lengths: per_token. The bandit code of arXiv
    2404.14367 takes beta itself as the margin: Square(beta).
    """
    return Parts(PairwiseObjective(Square(1 / (2 * tau)), Score(per_token=per_token), 1.0))


@register("SimPO: Simple Preference Optimization with a Reference-Free Reward (arXiv 2405.14734)")
def simpo(*, beta: float = 2.0, margin: float = 1.0, label_smoothing: float = 0.0) -> Parts:
    """SimPO: -log sigma(beta (mean log-prob of chosen - of rejected) - margin), no reference (equation 6). 2 and 1: within the paper's
    table 7.
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), Score(0.0, per_token=True), beta, margin=margin))


@register("SLiC-HF: Sequence Likelihood Calibration with Human Feedback (arXiv 2305.10425)")
def slic(*, beta: float = 0.1, margin: float = 1.0) -> Parts:
    """SLiC in DPO's form: max(margin - beta (d_chosen - d_rejected), 0), as TRL's hinge. The paper has log-probs without reference."""
    return Parts(PairwiseObjective(Hinge(margin), beta=beta))


@register("KTO: Model Alignment as Prospect Theoretic Optimization (arXiv 2402.01306)")
def kto(*, beta: float = 0.1) -> Parts:
    """KTO, for response_loss: sigma(z - beta d) of desirable responses, sigma(beta d - z) of the others, times their weights (equation 8).

    reference_point z = beta times the estimated divergence, clamped at 0. beta 0.1: section 4. Weights 1 unless the classes are unequal.
    """
    return Parts(PairwiseObjective(Sigmoid(), beta=beta))


@register("Binary Classifier Optimization for Large Language Model Alignment (arXiv 2404.04656)")
def bco(*, beta: float = 0.1) -> Parts:
    """BCO, for response_loss: -log sigma(+-(beta d - delta)), reference_point delta the running mean of the rewards."""
    return Parts(PairwiseObjective(Logistic(), beta=beta))


@register("Self-Play Preference Optimization for Language Model Alignment (arXiv 2405.00675)")
def sppo(*, beta: float = 0.001) -> Parts:
    """SPPO with hard labels, for response_loss: (d -+ 1 / (2 beta))^2 of chosen and rejected. beta 0.001: eta = 1000 of the paper's section
    5.
    """
    return Parts(PairwiseObjective(Square(1 / (2 * beta)), beta=1.0))


@register(_APO)
def apo_zero(*, beta: float = 0.1) -> Parts:
    """APO-zero, for response_loss: chosen up, rejected down, each against the reference: sigma(-beta d) and sigma(beta d)."""
    return Parts(PairwiseObjective(Sigmoid(), beta=beta))


@register(_APO)
def apo_down(*, beta: float = 0.1) -> Parts:
    """APO-down: both responses fall, the rejected one faster: sigma(beta d_chosen) + 1 - sigma(beta (d_chosen - d_rejected)).

    For models that are better than the chosen responses. beta 0.1 is TRL's.
    """
    return Parts(PairwiseObjective(Sigmoid(), beta=beta, chosen_down=Sigmoid()))


@register("Noise Contrastive Alignment of Language Models with Explicit Rewards (arXiv 2402.05369)")
def nca_pair(*, beta: float = 0.1) -> Parts:
    """NCA of pairs, for response_loss: -log sigma(c) - log sigma(-c) / 2 - log sigma(-r) / 2, c and r = beta d of chosen and rejected.

    As soft labels: targets 2/3 of the chosen and 1 of the rejected ones, weights 3/2 and 1/2, and as denominator the number of pairs.
    beta 0.1 is TRL's.
    """
    return Parts(PairwiseObjective(SoftLabel(), beta=beta))


@register(_AOT)
def aot(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Parts:
    """AOT of pairs: quantile by quantile, the policy's contrasts should lie above the reference's: -log sigma(beta difference).

    Pass pairwise.sorted_scores(log_probs, ref_log_probs, pairs) and halves of them: the whole batch at once. beta 0.1 is TRL's.
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), _FREE, beta))


@register(_AOT)
def aot_unpaired(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Parts:
    """AOT without pairs: the quantiles of the chosen responses' log-ratios above those of the rejected ones': as aot, sorted with
    paired=False.
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), _FREE, beta))


@register("Accelerating RL for LLM Reasoning with Optimal Advantage Regression (arXiv 2505.20686)")
def a_star_po(*, beta: float = 1e-3) -> Parts:
    """A*-PO, for response_loss with every response desirable: (beta d - (r - V*))^2, d = log pi / ref of the whole response.

    targets are r - V*, V* of the prompt by advantage.soft_values of n answers of the reference, temperature 0.5, n 8; prompts whose
    answers all failed are left out. beta 1e-3 (the second one), 0.5 and 8 are TRL's defaults.
    """
    return Parts(PairwiseObjective(Square(), beta=beta))


@register(_TPO)
def tpo(*, beta: float = 0.01, label_smoothing: float = 0.0, coefficient: float = 1.0) -> Parts:
    """TPO: -log sigma(beta (log pi of chosen - of rejected)) without reference, and the likelihood of a third, gold response.

    second: the gold responses' batch, coefficient times their NLL, a token mean. beta 0.01 and coefficient 1 (alpha) are TRL's defaults.
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), _FREE, beta), second=_gold(coefficient))


@register(_TPO)
def tpo_length(*, beta: float = 0.01, margin: float = 0.5, label_smoothing: float = 0.0, coefficient: float = 1.0) -> Parts:
    """TPO-L: TPO of mean log-probs with a margin, as SimPO's; otherwise tpo. margin 0.5 is TRL's tpo_l_gamma."""
    objective = PairwiseObjective(Logistic(label_smoothing), Score(0.0, per_token=True), beta, margin=margin)
    return Parts(objective, second=_gold(coefficient))


def _gold(coefficient: float) -> PolicyObjective:
    return PolicyObjective(NoRatio(), SurrogateSum((TokenNLL(),), (coefficient,)))


@register("Towards Efficient Exact Optimization of Language Model Alignment (arXiv 2402.00856)")
def exo(*, beta: float = 0.1, label_smoothing: float = 1e-3) -> Parts:
    """EXO of pairs: the reverse divergence of the policy's preference from the label's. 1e-3: the authors' and TRL's smoothing."""
    return Parts(PairwiseObjective(LabelKL(label_smoothing), beta=beta))


@register("Discovering Preference Optimization Algorithms with and for Large Language Models (arXiv 2406.08414)")
def discopop(*, beta: float = 0.05, temperature: float = 0.05) -> Parts:
    """DiscoPOP: logistic and exponential loss mixed by sigma(h / temperature). Both 0.05: the paper's."""
    return Parts(PairwiseObjective(LogisticSigmoidMix(temperature), beta=beta))


@register("ORPO: Monolithic Preference Optimization without Reference Model (arXiv 2403.07691)")
def orpo(*, odds_coefficient: float = 0.1) -> Parts:
    """ORPO: NLL of the chosen + 0.1 (-log sigma(log odds of chosen - of rejected)), odds of mean token log-probs (equations 6 and 7).

    Written with the NLL's coefficient 1 / odds_coefficient: multiply the loss by odds_coefficient for the paper's scale.
    """
    nll = NegativeLogLikelihood(1 / odds_coefficient, per_token=True)
    return Parts(PairwiseObjective(Logistic(), Score(0.0, per_token=True, transform=LogOdds()), 1.0, nll=nll))


@register("AlphaPO: Reward Shape Matters for LLM Alignment (arXiv 2501.03884)")
def alpha_po(*, beta: float = 2.0, margin: float = 1.0, alpha: float = 0.25) -> Parts:
    """AlphaPO: SimPO on (1 - p^-alpha) / alpha, p the mean token probability. alpha 0.25, beta 2 and margin 1 are assumed."""
    score = Score(0.0, per_token=True, transform=AlphaDivergence(alpha))
    return Parts(PairwiseObjective(Logistic(), score, beta, margin=margin))


@register(_RPO)
def rpo(*, beta: float = 0.1, eta: float = 0.005, label_smoothing: float = 0.0) -> Parts:
    """RPO: DPO + eta beta times the NLL of the chosen response, summed over its tokens: the paper's form and the authors' handbook code.

    eta 0.005: the handbook's configurations (with beta 0.01 for Mistral, 0.05 for Gemma). It is the default because it is the paper's; the
    authors' OpenRLHF branch is rpo_openrlhf.
    """
    return Parts(PairwiseObjective(Logistic(label_smoothing), beta=beta, nll=NegativeLogLikelihood(eta * beta)))


@register(_RPO)
def rpo_openrlhf(*, beta: float = 0.5, eta: float = 0.2, label_smoothing: float = 0.0) -> Parts:
    """RPO of the authors' OpenRLHF branch: DPO + eta times the token mean of the chosen NLL, whatever beta is. 0.5 and 0.2: its script."""
    return Parts(PairwiseObjective(Logistic(label_smoothing), beta=beta, nll=NegativeLogLikelihood(eta, per_token=True)))


@register(_CPL)
def cpl(*, alpha: float = 0.1, bias: float = 0.5) -> Parts:
    """CPL: -log sigma(s_chosen - bias s_rejected), s = alpha times the sum of log-probs; no reference.

    alpha 0.1 and bias 0.5: the authors' Meta-World state configuration. bias < 1 prefers what is in the data. The paper's discount gamma^t
    is in no released code: sequence_log_probs takes token_weights. Soft labels are both orders as pairs, weighted. Ranking:
    pairwise.all_pairs; the released ranking divides by the pairs of non-zero loss and breaks ties by position, here every pair counts and
    ties give none.
    """
    return Parts(PairwiseObjective(Logistic(), _FREE, alpha, bias))


@register(_CPL)
def cpl_bc(*, alpha: float = 0.1, bias: float = 1.0, coefficient: float = 1.0) -> Parts:
    """CPL-BC: CPL + coefficient times the mean NLL of both responses: the authors' configuration (alpha 0.1, bias 1, coefficient 1)."""
    nll = NegativeLogLikelihood(coefficient, per_token=True, both=True)
    return Parts(PairwiseObjective(Logistic(), _FREE, alpha, bias, nll=nll))


@register(_CPL)
def cpl_kl(*, alpha: float = 0.2, bias: float = 0.75) -> Parts:
    """CPL-KL: CPL on log-ratios to the cloned policy. 0.2 and 0.75: the authors' configuration."""
    return Parts(PairwiseObjective(Logistic(), Score(), alpha, bias))


@register("Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning (arXiv 2407.00617)")
def inpo(*, eta: float = 0.0075, share: float = 1 / 3) -> Parts:
    """INPO: (h - 1 / (2 eta))^2, h the log-ratio contrast against ref^share previous^(1 - share), share = tau / eta.

    eta 0.0075 and share 1/3: two re-implementations (COMAL's run has eta 0.002). share 1 is IPO. The target is 67 at this eta: keep fp32.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"recipe: 'inpo' takes 0 <= share <= 1, got share={share!r}; it is tau / eta, 1/3 in the paper's runs")
    return Parts(PairwiseObjective(Square(1 / (2 * eta)), Score(share, 1 - share), 1.0))


@register(_EGPO)
def egpo(*, per_token: bool = False) -> Parts:
    """EGPO by online IPO: (d_y - d_y' - (p(y beats y'') - p(y' beats y'')) / beta)^2: targets are (p1 - p2) / beta, beta 0.1.

    Responses y, y' from any distribution, y'' from the opponent: the policy itself, then the policy after the half step, from which both
    gradients are taken at the same parameters. The authors undo the half step by stepping with the negated gradient, which is right for
    plain SGD alone. Their language-model trainer averages over prefixes, each a pair of its own, and may divide by lengths: per_token.
    """
    return Parts(PairwiseObjective(Square(), Score(per_token=per_token), 1.0))


@register(_EGPO)
def online_ipo(*, per_token: bool = False) -> Parts:
    """Online IPO of EGPO's comparison: both responses from the policy, targets (p(y beats y') - 1/2) / beta; weights correct for the
    sampling.
    """
    return Parts(PairwiseObjective(Square(), Score(per_token=per_token), 1.0))


@register(_DNO)
def dno(*, eta: float = 0.1) -> Parts:
    """DNO in practice: DPO whose reference is the previous iterate, on pairs of large margin. 0.1 (or 0.05): the paper's."""
    return Parts(PairwiseObjective(Logistic(), Score(0.0, 1.0), eta))


@register(_DNO)
def dno_soft(*, eta: float = 0.1) -> Parts:
    """DNO, algorithm 1: the label is the probability sigma(r(y1) - r(y2)) of expected win rates; targets hold it."""
    return Parts(PairwiseObjective(SoftLabel(), Score(0.0, 1.0), eta))


@register("SePPO: Semi-Policy Preference Optimization for Diffusion Alignment (arXiv 2410.05255)")
def seppo(*, beta: float = 1.0) -> Parts:
    """SePPO: the rejected one is a sample of an earlier model, and its sign turns where it is judged to be good.

    Pass -log_probs and -ref_log_probs for a sample judged winning: -log sigma(beta (d_w + d_l)). beta is task-dependent (thousands for
    diffusion errors as log-probs) and assumed. There is no released training code.
    """
    return Parts(PairwiseObjective(Logistic(), beta=beta))


@register("Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion (arXiv 2406.19185)")
def copg(*, beta: float = 0.1) -> Parts:
    """CoPG: (R_1 - R_2 - beta (d_1 - d_2))^2 / (2 beta), whose gradient is the paper's; targets are reward differences; off-policy, no
    ratio.

    beta is tuned per task, 0.03 to 0.1 in reports.
    """
    return Parts(PairwiseObjective(Square(scale=1 / (2 * beta)), beta=beta))


@register("Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment (arXiv 2310.00212)")
def p3o(*, epsilon: float = 0.2) -> Parts:
    """P3O, joint clipping: -min(c u, c clip(u, -epsilon, epsilon)) / 2, u = log(rho_1 / rho_2): pass old log-probs as ref_log_probs.

    targets c = (r_1 - r_2) rho_1 rho_2 without gradient. The display and 0.2 are assumed; the separate form is p3o_separate.
    """
    return Parts(PairwiseObjective(PairClip(epsilon), beta=1.0))


@register("The Importance of Online Data: Understanding Preference Fine-tuning via Coverage (arXiv 2406.01462)")
def hypo(*, beta: float = 0.05) -> Parts:
    """HyPO: DPO on labelled pairs plus the reverse divergence on fresh samples: two batches, whose losses are added.

    second: sg(k1 - baseline) S, a policy gradient: pass advantages = leave_one_out_advantages(-(S - S_ref), group) times
    the coefficient 1e-4. Both numbers could not be confirmed from the authors' code.
    """
    second = PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum())
    return Parts(PairwiseObjective(beta=beta), second=second)
