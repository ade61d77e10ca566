"""A corridor as a text game, and the agent loop that plays it in verl: one output a turn, with the turn's state and reward."""

from uuid import uuid4

from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

LAST, TURNS = 6, 12


class Corridor:
    """The agent stands at a place, answers left or right, and wins at the last place."""

    def __init__(self, start: int) -> None:
        self.place, self.turns = start, 0

    @property
    def question(self) -> str:
        return f"Place {self.place} of {LAST} . Answer left or right ."

    @property
    def state(self) -> str:
        return f"place {self.place}"

    @property
    def won(self) -> bool:
        return self.place == LAST

    @property
    def over(self) -> bool:
        return self.won or self.turns == TURNS

    def act(self, answer: str) -> float:
        """Move, and return the reward of this turn. Anything else than one of the two words costs the turn."""
        word = answer.strip().strip(".").lower()
        self.place = max(self.place + {"left": -1, "right": 1}.get(word, 0), 0)
        self.turns += 1
        return float(self.won)


class CorridorLoop(AgentLoopBase):
    """Plays one episode from the place that the dataset's extra_info names."""

    async def run(self, sampling_params: dict, **kwargs) -> list[AgentLoopOutput]:
        corridor, outputs = Corridor(int(kwargs["extra_info"]["start"])), []
        length = self.rollout_config.response_length
        while not corridor.over:
            state = corridor.state
            prompt_ids = await self.ct_build_initial_tokens([{"role": "user", "content": corridor.question}])
            answer = await self.server_manager.generate(request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params)
            reward = corridor.act(self.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
            outputs.append(
                AgentLoopOutput(
                    prompt_ids=prompt_ids,
                    response_ids=answer.token_ids[:length],
                    response_mask=[1] * len(answer.token_ids[:length]),
                    response_logprobs=answer.log_probs[:length] if answer.log_probs else None,
                    num_turns=2,
                    metrics=AgentLoopMetrics(),
                    extra_fields={
                        **answer.extra_fields,  # verl's trainer reads the weights' version from here
                        "reward_extra_info": {},  # verl copies it from the last output, which gives its own reward_score
                        "anchor_states": [state],  # what GiGPO compares: one entry a turn, and this output holds one
                        "step_rewards": [reward],
                    },
                )
            )
        outputs[-1].reward_score = float(corridor.won)  # verl copies it to the other outputs: the score of the episode
        return outputs
