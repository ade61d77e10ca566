"""Advantages of the papers' own code: HGPO, Dr. MAS, SPO, DanceGRPO, UniGRPO, NFT and DR-PO."""

import torch

from gigpo_fast import advantage, loss, reward
from gigpo_fast.advantage import SPO_TREE, VERL_AGENT, GroupStatistics, Whitening
from gigpo_fast.objective import Clip, PolicyObjective, TokenMean, TokenRatio

from .adapter import Answer, Unsupported
from .masked import beyond
from .tensors import Case

DIVIDED = GroupStatistics(count="row", zero_variance="divide")
DANCE = GroupStatistics(count="row", eps=1e-8)
POPULATION = GroupStatistics(count="row", eps=0.0, ddof=0)
BIASED = Whitening(ddof=0)


def hgpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    scale = "std" if config["mode"] == "mean_std_norm" else None
    group, trajectory, anchor = inputs["group"], inputs["trajectory"], inputs["anchor"]
    scores, ids = inputs["token_level_rewards"].sum(-1), advantage.step_ids(inputs["mask"].bool())
    if config["function"] == "compute_hgpo_outcome_advantage":
        rewards = inputs["step_rewards"]
        found = advantage.hgpo_advantages(
            rewards,
            trajectory,
            group,
            anchor,
            gamma=config["gamma"],
            history=config["history_length"],
            length_exponent=config["length_weight_alpha"],
            scale=scale,
            episode_scores=scores if config["base_group"] else None,
        )
        return Answer({"step_returns": found.step_returns, "advantages": advantage.to_tokens(found.advantages, ids)})
    states = [f"{task}/{state}" for task, state in zip(group, anchor)]
    found = advantage.gigpo_advantages(
        torch.zeros_like(scores),
        trajectory,
        group,
        states,
        gamma=1.0,
        episode_scores=scores,
        step_returns=inputs["step_returns"],
        scale=scale,
        statistics=VERL_AGENT,
    )
    total = config["episode_advantage_w"] * found.episode + config["step_advantage_w"] * found.step
    return Answer({"advantages": advantage.to_tokens(total, ids)})


def drmas(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    scores, group, trajectory = inputs["token_level_rewards"].sum(-1), inputs["group"], inputs["trajectory"]
    ids = advantage.step_ids(inputs["mask"].bool())
    count = "row" if config["group_by_agent_id"] else "trajectory"
    statistics = GroupStatistics(count=count, singleton="raw", zero_variance="divide")
    options = {"statistics": statistics, "trajectory": None if config["group_by_agent_id"] else trajectory}
    name = config["function"].removeprefix("compute_").removesuffix("_outcome_advantage")
    if name == "grpo" and not config["group_by_agent_id"]:
        # Each row gets what the mean of its trajectory's rows gets.
        scores = advantage.group_moments(scores, [f"{task}/{own}" for task, own in zip(group, trajectory)]).mean.float()
    match name:
        case "grpo":
            rows = advantage.group_advantages(scores, group, scale="std" if config["norm_adv_by_std_in_grpo"] else None, **options)
        case "rloo":
            rows = advantage.leave_one_out_advantages(scores, group, **options)
        case "episode_norm_reward":
            rows = advantage.group_advantages(scores, group, scale=None if config["remove_std"] else "std", **options)
        case "reinforce_plus_plus_baseline":
            tokens = advantage.reinforce_plus_plus_baseline_advantages(scores, group, ids, **options)
            return Answer({"advantages": tokens}, {"advantages": beyond(inputs["mask"])})
        case other:
            raise Unsupported(f"no function for {other!r}")
    return Answer({"advantages": advantage.to_tokens(rows, ids)})


def spo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    match config["function"]:
        case "masked_whiten" | "masked_rescale_by_std":
            values, mask = inputs["advantages"], inputs["mask"]
            if config["function"] == "masked_rescale_by_std":
                return Answer({"advantages": advantage.rescale(values, mask)}, {"advantages": beyond(mask)})
            unsure = inputs["old_log_probs"].exp() < 0.9 if config["prob_mask"] else None
            return Answer({"advantages": advantage.whiten(values, mask, counted=unsure)}, {"advantages": beyond(mask)})
        case "_compute_advantages":
            return _spo_gae(case)
        case "_compute_token_advantages":
            return _spo_chain(case)
        case "_compute_group_advantages":
            scores, group = torch.tensor(inputs["scores"], dtype=torch.float64), torch.tensor(inputs["group"])
            if config["adv_method"] == "rloo":
                alone = GroupStatistics(count="row", singleton="raw")
                return Answer({"advantages": advantage.leave_one_out_advantages(scores, group, statistics=alone)})
            return Answer({"advantages": advantage.group_advantages(scores, group, scale="std", statistics=SPO_TREE)})
        case "extract_edges_from_tree":
            return _spo_tree(case)
        case other:
            raise Unsupported(f"{other} is a loss")


def _spo_gae(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    mask, everywhere = inputs["mask"], torch.ones_like(inputs["mask"])
    rewards = torch.where(mask, inputs["rewards"], 0.0)  # the values of padding are not left out
    found = advantage.gae_advantages(rewards, inputs["values"], everywhere, gamma=config["gamma"], lam=config["lam"])
    returns = advantage.token_returns(rewards, mask, gamma=config["gamma"])  # of lambda 1, whatever that of the policy is
    advantages = found.advantages
    if config["whiten_advantages"]:
        advantages = advantage.whiten(advantages, mask)
    if config["grayen_advantages"]:
        advantages = advantage.rescale(advantages, mask)
    return Answer({"advantages": advantages, "returns": returns}, {"advantages": beyond(mask), "returns": beyond(mask)})


def _spo_chain(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    length, points, known = inputs["length"], inputs["cutpoints"], inputs["cutpoint_values"]
    values, cuts = torch.zeros(1, length, dtype=torch.float64), torch.zeros(1, length, dtype=torch.bool)
    for point, value in zip(points, known):
        if point >= 0:
            values[0, point], cuts[0, point] = value, True
    start = torch.tensor([known[0]], dtype=torch.float64) if points and points[0] == -1 else None
    mask, score = torch.ones(1, length, dtype=torch.bool), torch.tensor([inputs["score"]], dtype=torch.float64)
    tokens = advantage.segment_advantages(values, cuts, score, mask, start_values=start)
    sure = torch.tensor([inputs["response_prob"]], dtype=torch.float64) > config["zero_if_prob_above"]
    return Answer({"token_advantages": torch.where(sure, 0.0, tokens)[0]})


def _spo_tree(case: Case) -> Answer:
    nodes, parents = [], []

    def walk(node: dict, parent: int) -> int:
        place = len(nodes)
        nodes.append(node)
        parents.append(parent)
        return 1 + max([walk(child, place) for child in node.get("children", [])], default=-1)

    depth = walk(case.inputs["tree"], -1)
    scores = torch.tensor([node.get("reward", 0.0) for node in nodes], dtype=torch.float64)
    parent = torch.tensor(parents)
    values = advantage.tree_values(scores, parent, depth=depth)
    edges = advantage.tree_advantages(values, parent, scale="std" if case.config["adv_method"] == "grpo" else None)
    prover = advantage.tree_advantages(values, parent, best_of=4)
    below = advantage.group_moments(values, parent, ddof=0, valid=parent >= 0)
    outputs = {}
    for place, node in enumerate(nodes):
        children = (parent == place).nonzero().flatten()
        outputs[f"node_values.{node['text']}.value"] = values[place]
        outputs[f"node_values.{node['text']}.std"] = below.std[children[0]] if len(children) else None
    kept = [place for place in range(1, len(nodes)) if not case.config["only_adv_greater_than_zero"] or edges[place] + prover[place] != 0]
    for number, place in enumerate(kept):
        outputs[f"edges.{number}.advantage"], outputs[f"edges.{number}.prover_advantage"] = edges[place], prover[place]
        outputs[f"edges.{number}.value"] = values[place]
    extra = set(case.outputs) - set(outputs)
    given = {name: case.outputs[name] for name in extra if name.rsplit(".", 1)[-1] in ("query_text", "response_text", "leaf")}
    return Answer(outputs | given)


def dancegrpo(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if config["function"] != "train_one_step advantages":
        raise Unsupported(f"{config['function']} is a loss")
    rewards = inputs["rewards"]
    group = torch.arange(len(rewards)) // config["num_generations"] if config["use_group"] else torch.zeros(len(rewards)).long()
    return Answer({"advantages": advantage.group_advantages(rewards, group, scale="std", statistics=DANCE)})


def unigrpo(case: Case) -> Answer:
    if case.config["function"] != "rl_reward.z_score_normalize":
        raise Unsupported(f"{case.config['function']} is a loss")
    rewards = torch.tensor(case.inputs["rewards"], dtype=torch.float64)
    group = torch.zeros(len(rewards), dtype=torch.int64)
    return Answer({"advantages": advantage.group_advantages(rewards, group, scale="std", statistics=POPULATION)})


def nft(case: Case) -> Answer:
    if case.config.get("function") != "compute_dapo_nft_outcome_advantage":
        raise Unsupported("the other cases are losses")
    mask, group = case.inputs["mask"].bool(), case.inputs["group"]
    scores = case.inputs["token_level_rewards"].sum(-1)  # 1 and -1
    ids = advantage.step_ids(mask)
    tokens = advantage.to_tokens(advantage.group_advantages(scores, group, scale="std", statistics=DIVIDED), ids)
    rate = advantage.group_moments(scores > 0, group).mean
    return Answer({"advantages": tokens, "returns": tokens, "correct_rate": rate.unsqueeze(1).expand(mask.shape)})


def drpo(case: Case) -> Answer:
    """Pad positions count everywhere but in the policy loss, which leaves out what was copied from the dataset."""
    config, inputs = case.config, case.inputs
    everywhere = torch.ones_like(inputs["rollin"])
    rewards = reward.kl_rewards(inputs["old_log_probs"], inputs["ref_log_probs"], everywhere, coefficient=config["kl_coef"])
    rewards = rewards.scatter_add(1, inputs["score_index"].unsqueeze(1), inputs["scores"].unsqueeze(1))
    if config["whiten_rewards"]:
        rewards = advantage.whiten(rewards, everywhere, keep_mean=True, statistics=BIASED)
    found = advantage.gae_advantages(rewards, inputs["values"], everywhere, gamma=config["gamma"], lam=config["lam"])
    advantages = advantage.whiten(found.advantages, everywhere, statistics=BIASED)
    log_probs = inputs["log_probs"].clone().requires_grad_()
    clip = config["cliprange"]
    result = loss.policy_loss(
        log_probs,
        advantages,
        ~inputs["rollin"],
        old_log_probs=inputs["old_log_probs"],
        objective=PolicyObjective(TokenRatio(log_ratio_clip=None), Clip(clip, clip), aggregation=TokenMean()),
    )
    result.loss.backward()
    return Answer(
        {
            "rewards": rewards,
            "advantages": advantages,
            "returns": found.returns,
            "pg_loss": result.loss,
            "grad_log_probs": log_probs.grad,
        }
    )
