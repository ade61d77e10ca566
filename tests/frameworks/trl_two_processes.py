"""What each of two processes runs: both trainers under DistributedDataParallel, compared on each rank. Started by test_trl_ranks.py."""

import contextlib
import io

import torch
from accelerate.utils import gather_object

from gigpo_fast.integrations.trl import FusedGRPOTrainer, GiGPOCredit
from tests.frameworks.trl_runs import GRPOTrainer, assert_same, run, scripted_turns

# A prompt's four rows span both processes: two rows each.
SETTINGS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "beta": 0.1}


class Keeping(FusedGRPOTrainer):
    """Keeps the first generated batch of this process."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("kept", (self.credit.turns(inputs, None), output))
        return output


def check_credit(trainer: Keeping) -> None:
    """Each rank's advantages are its rows of what one process makes of all rows."""
    turns, output = trainer.kept
    mask = (output["completion_mask"] * output["tool_mask"]).bool()
    masks, found = gather_object([mask]), gather_object([output["advantages"]])  # each as wide as its rank's longest row
    width = max(part.shape[1] for part in masks)
    masks, found = (torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]) for parts in (masks, found))
    group = trainer.num_generations
    whole, _ = trainer.credit.token_advantages(torch.zeros(len(found)), masks, gather_object(turns), 0, group, "std")
    level = found - whole  # the episode's part: one number a row, wherever it is trained
    first = torch.stack([row[at][0] for row, at in zip(level, masks)])
    torch.testing.assert_close(level, torch.where(masks, first[:, None], 0.0), rtol=1e-5, atol=1e-5)
    assert float(whole.abs().max()) > 0.1


def main() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for loss_type in ("grpo", "dapo"):
            want, got = (run(kind, steps=5, loss_type=loss_type, **SETTINGS) for kind in (GRPOTrainer, FusedGRPOTrainer))
            assert got.trainer.accelerator.num_processes == 2 and got.trainer.unfused_because is None
            assert_same(got, want)
        extra = {"rollout_func": scripted_turns, "credit": GiGPOCredit()}
        check_credit(run(Keeping, steps=2, extra=extra, **SETTINGS).trainer)
        idle = run(FusedGRPOTrainer, steps=2, extra={**extra, "skip_idle_rows": True}, loss_type="dapo", **{**SETTINGS, "beta": 0.0})
    gathered = [torch.zeros(1) for _ in range(2)]
    torch.distributed.all_gather(gathered, torch.tensor([float(sum(g.abs().sum() for g in idle.gradients[-1].values()))]))
    assert gathered[0] == gathered[1], "DistributedDataParallel did not reduce"
    print(f"rank {idle.trainer.accelerator.process_index} agrees")


if __name__ == "__main__":
    main()
