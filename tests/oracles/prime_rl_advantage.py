"""prime-rl's group algorithms: GRPO, with a length penalty, MaxRL, a running baseline per agent, agents of one episode as peers."""

import torch

from gigpo_fast import advantage, anchor, reward

from .adapter import Adapter, Answer, Unsupported
from .tensors import Case


def answer(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    rewards = inputs["rewards"]
    one_group = torch.zeros(rewards.shape[0], dtype=torch.int64)
    match config["algorithm"]:
        case "grpo":
            if config["length_penalty"] is not None:
                output = inputs["num_output_tokens"]
                costs = torch.stack([output, inputs["num_total_tokens"] - output, inputs["num_turns"]], 1)
                names = ("num_output_tokens", "num_input_tokens", "num_turns")
                weights = [config["length_penalty"][f"{name}_weight"] for name in names]
                rewards = reward.cost_penalty(rewards, costs, one_group, weights=weights)
            return Answer({"advantages": advantage.group_advantages(rewards, one_group)})
        case "max_rl":
            return Answer({"advantages": advantage.maxrl_advantages(rewards, one_group)})
        case "rae":
            names = list(dict.fromkeys(inputs["agent"]))
            start = torch.zeros(len(names))
            found = advantage.running_baseline_advantages(rewards, anchor.group_ids(inputs["agent"]), start, decay=config["decay"])
            after = {f"baselines_after.{name}": value for name, value in zip(names, found.baselines)}
            return Answer({"advantages": found.advantages} | after)
        case "hierarchical_grpo":
            # Agents that share an episode are peers in it; the others are compared over the whole group.
            inside = config["episode_agents"]
            group = [f"{agent}/{episode}" if agent in inside else agent for agent, episode in zip(inputs["agent"], inputs["episode"])]
            return Answer({"advantages": advantage.group_advantages(rewards, group)})
        case other:
            raise Unsupported(f"no function for the algorithm {other!r}")


ADAPTER = Adapter(answer)
