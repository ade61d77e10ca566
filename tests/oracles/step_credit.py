"""Step credit over states and turns: a public port of GraphGPO, G2PO's and MT-GRPO's authors' code, AReaL's turn-level GAE."""

import torch

from gigpo_fast import advantage
from gigpo_fast.advantage import CORRECTED, VERL_AGENT
from gigpo_fast.objective import proximal_log_probs

from .adapter import Adapter, Answer, Unsupported
from .masked import REASON, beyond
from .tensors import Case

_FLOAT32 = "the peer takes means of scores in float32, so that scores near 10 keep a residue of their last digits"
_NO_SUCCESS = "in a task without success the peer computes a raw credit that nothing reads; here it is 0"


def relax(case: Case) -> Answer:
    config, rows = case.config, _Rows(case.inputs["rows"])
    statistics = CORRECTED if config["episode_weighting"] == "trajectory_once" else VERL_AGENT
    last = torch.tensor(rows.column("last"))
    wins = torch.tensor(rows.column("success"))
    valid_action = torch.tensor(rows.column("valid"))
    if case.name.startswith("gigpo/"):
        found = advantage.gigpo_advantages(
            torch.tensor(case.outputs["step_rewards"], dtype=torch.float64), *rows.labels, gamma=config["gamma"], scale="std", statistics=statistics
        )
        outputs = {"step_rewards": case.outputs["step_rewards"], "returns": found.step_returns, "step": found.step}
        return Answer({**outputs, "episode": found.episode, "advantages": found.advantages})
    rewards = torch.where(last & wins, config["success_reward"], 0.0).double() - config["invalid_penalty"] * (~valid_action).double()
    reached = torch.tensor([-1 if state == "SUCCESS" else rows.numbers[state] for state in rows.column("next_state")])
    decay, credit = config["omega"], 10.0
    if config["convention"] == "paper":
        credit *= decay
    found = advantage.graph_advantages(
        rewards, *rows.labels, success=wins, next_anchor=reached, decay=decay, credit=credit, statistics=statistics
    )
    outputs = {"raw": found.step_returns, "graph": found.step, "episode": found.episode, "advantages": found.advantages}
    task = torch.tensor([rows.number(name) for name in rows.column("task")])
    won = torch.zeros(len(task)).index_add_(0, task, wins.float())[task] > 0
    return Answer(outputs, {"raw": torch.where(won, 0.0, float("inf"))})


def g2po(case: Case) -> Answer:
    config, rows = case.config, _Rows(case.inputs["rows"])
    scores = case.inputs["token_level_rewards"].double()
    penalties = torch.where(torch.tensor(rows.column("valid")), 0.0, -config["invalid_action_penalty"]).double()
    wins = torch.tensor(rows.column("success")) & torch.tensor(rows.column("last"))
    found = advantage.g2po_advantages(
        torch.where(wins, config["success_reward"], 0.0).double(),
        *rows.labels,
        gamma=config["gamma"],
        episode_scores=scores,
        success_value=config["success_reward"],
        step_penalties=penalties,
        scale="std" if config["mode"] == "mean_std_norm" else None,
        step_weight=config["step_advantage_w"],
    )
    spread = advantage.group_moments(scores, rows.labels[1]).std + 1e-6 if config["mode"] == "mean_std_norm" else torch.ones_like(scores)
    rounding = 4 * torch.finfo(torch.float32).eps * scores.abs().max() / spread
    return Answer(
        {"step": found.step, "episode": found.episode, "advantages": found.advantages}, dict.fromkeys(("episode", "advantages"), rounding)
    )


def mt_grpo(case: Case) -> Answer:
    if not case.name.startswith("mt_grpo/"):
        raise Unsupported("the public code and the paper of IGPO differ")
    inputs, mask = case.inputs, case.inputs["mask"].bool()
    turn, outcome = inputs["turn_rewards"], inputs["outcome_rewards"]
    group = torch.arange(turn.shape[0]) // case.config["num_generations"]
    z = lambda value: advantage.group_advantages(value, group, scale="std", statistics=advantage.TRL)  # noqa: E731
    places = torch.tensor([_first_result(segment, row) for segment, row in zip(inputs["result_segment"], mask)])
    found = advantage.mt_grpo_advantages(turn, outcome, group, mask, places, coefficient=case.config["turn_advantage_coef"])
    wanted = {"turn_advantages": z(turn), "outcome_advantages": z(outcome), "combined_advantages": z(turn + outcome)}
    return Answer({**wanted, "advantages": found}, {"advantages": beyond(mask)})


def _first_result(segment: int, mask: torch.Tensor) -> int:
    """Where a row's segment of untrained tokens with that number begins; -1: the row has no result."""
    if segment < 0:
        return -1
    changes = [0, *((mask[1:] != mask[:-1]).nonzero().squeeze(1) + 1).tolist()]
    return changes[segment]


def areal(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    if "unit" not in config:
        given = (inputs["log_probs"], inputs["old_log_probs"], inputs["versions"], config["current_version"])
        kinds = {"loglinear": False, "linear": True}
        found = {name: proximal_log_probs(*given, linear=linear) for name, linear in kinds.items()}
        return Answer({**found, "rollout": inputs["old_log_probs"]})
    mask, lam = inputs["mask"].bool(), case.outputs["lambda_used"]
    if isinstance(lam, torch.Tensor | list):  # one a row
        lam = torch.as_tensor(lam)[:, None].expand(mask.shape)
    final = inputs["values"][:, -1] * inputs["seq_no_eos_mask"]
    rest = {"gamma": config["gamma"], "lam": lam, "final_values": final}
    if config["unit"] == "turn":
        found = advantage.turn_gae_advantages(inputs["rewards"], inputs["values"], mask, inputs["turn_ids"], **rest)
    else:
        found = advantage.gae_advantages(inputs["rewards"], inputs["values"], mask, **rest)
    return Answer({"advantages": found.advantages, "returns": found.returns}, dict.fromkeys(("advantages", "returns"), beyond(mask)))


class _Rows:
    """Recorded step rows by column; states are numbered."""

    def __init__(self, rows: list[dict]) -> None:
        self._rows = rows
        states = dict.fromkeys([*self.column("state"), *self.column("next_state")])
        self.numbers = {state: number for number, state in enumerate(states)}
        self.labels = (self.column("traj"), self.column("task"), torch.tensor([self.numbers[state] for state in self.column("state")]))

    def number(self, task: str) -> int:
        return list(dict.fromkeys(self.column("task"))).index(task)

    def column(self, name: str) -> list:
        return [row[name] for row in self._rows]


ADAPTERS = {
    "relax_graphgpo_gigpo": Adapter(
        relax, {"raw": _NO_SUCCESS}, outside={"distances.*": "named by state; what is compared follows from it", "episode_return": "an input here"}
    ),
    "g2po": Adapter(g2po, {"episode": _FLOAT32, "advantages": _FLOAT32}, outside=dict.fromkeys(("node_values", "group", "next_group"), "the peer's numbering of states")),
    "mt_grpo_igpo": Adapter(mt_grpo, {"advantages": REASON}),
    "areal_prox_turn_gae": Adapter(areal, {"advantages": REASON, "returns": REASON}, outside=dict.fromkeys(("lambda_used", "lengths"), "an input here")),
}
