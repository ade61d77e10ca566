"""Statistics of a batch over ranks: gloo processes with parts of a batch get what one process gets with all of it."""

import pathlib

import pytest
import torch
import torch.distributed as dist

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import VERL, Whitening

SPLITS = [0, 5, 5, 12]  # the second of three ranks has no rows
RANKS = len(SPLITS) - 1


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3])  # no group is split
    rewards = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    rewards[8:] = 0.25
    rewards[:5, 1] -= 2.0  # one rank's worst population is not the other's
    rewards[5:, 2] -= 2.0
    return dict(
        group=group,
        rewards=rewards,
        tokens=torch.randn(12, 4, generator=generator, dtype=torch.float64) + 50.0,
        mask=torch.rand(12, 4, generator=generator) < 0.7,
        valid=torch.rand(12, generator=generator) < 0.8,
    )


def answers(here: slice, process_group) -> dict[str, torch.Tensor]:
    b = {name: tensor[here] for name, tensor in batch().items()}
    scores, options = b["rewards"][:, 0], dict(process_group=process_group)
    state = reward.RunningMoments(*(torch.tensor(value, dtype=torch.float64) for value in (7.0, 0.3, 2.0)))
    scaled, after = reward.running_scale(scores, state, center=True, valid=b["valid"], **options)
    floor = Whitening(ddof=0, eps_in="floor")
    return {
        "whiten": advantage.whiten(b["tokens"], b["mask"], **options),
        "counted": advantage.whiten(b["tokens"], b["mask"], counted=b["tokens"] > 50.5, statistics=floor, keep_mean=True, **options),
        "nothing counted": advantage.whiten(b["tokens"], b["mask"], counted=b["mask"] & False, **options),
        "equal": advantage.whiten(torch.full_like(b["tokens"], 0.1), b["mask"], **options),
        "rescale": advantage.rescale(b["tokens"], b["mask"], **options),
        "normalise": advantage.normalise(scores, b["group"], std_over="batch", valid=b["valid"], **options),
        "leave_one_out": advantage.normalise(scores, mean_over="batch", std_over="batch", leave_one_out=True, statistics=VERL, **options),
        "gpg": advantage.gpg_advantages(scores, b["group"], valid=b["valid"], **options),
        "gdpo": advantage.gdpo_advantages(b["rewards"], b["group"], weights=[1.0, 0.5, 2.0], **options),
        "reinforce": advantage.reinforce_plus_plus_advantages(b["tokens"], b["mask"], gamma=0.9, **options),
        "baseline": advantage.reinforce_plus_plus_baseline_advantages(scores, b["group"], advantage.step_ids(b["mask"]), **options),
        "worst": reward.worst_population(b["rewards"], **options),
        "soft_worst": reward.worst_population(b["rewards"], temperature=0.5, **options),
        "running": scaled,
        "running_state": torch.stack(list(after)).expand(len(scores), 3),
    }


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.save(answers(slice(SPLITS[rank], SPLITS[rank + 1]), dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(pathlib.Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


WHOLE = answers(slice(0, 12), None)


@pytest.mark.parametrize("name", WHOLE)
def test_any_split_gives_what_one_process_gives(parts, name):
    together = torch.cat([part[name] for part in parts])
    torch.testing.assert_close(together, WHOLE[name], rtol=1e-12, atol=1e-12)
    alone = torch.cat([answers(slice(*SPLITS[rank : rank + 2]), None)[name] for rank in range(RANKS)])
    if name not in ("equal",):
        assert not torch.allclose(alone, WHOLE[name], rtol=1e-6, atol=1e-6), "without a process group each rank is on its own"
