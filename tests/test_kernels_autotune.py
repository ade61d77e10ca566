"""Choosing launch configurations by timing, with a clock of our own: no GPU and no launch is needed to see what is chosen and what is touched."""

import logging

import pytest
import torch

pytest.importorskip("triton", reason="the Triton kernels need triton")

from triton.runtime.errors import OutOfResources

from gigpo_fast.kernels import autotune, clip_loss, configs
from gigpo_fast.ops import clip_twin, rows_triton

KERNELS = sorted(configs.TABLE["sm_90"])
VARIABLE = "GIGPO_FAST_AUTOTUNE"


class Trials:
    """Stands in for the launchers and the clock: keeps what would be launched, and lets each configuration take the time it is given."""

    def __init__(self, monkeypatch, times):
        self.times, self.launched, self.tensors = times, [], []
        for kernel in KERNELS:
            monkeypatch.setattr(autotune, kernel, self._launch)

    def _launch(self, *arguments, config, **options):
        self.launched.append(config)
        self.tensors += [value for value in arguments if isinstance(value, torch.Tensor)]

    def milliseconds(self, launch):
        launch()
        return self.times.get(self.launched[-1], 1.0)


@pytest.fixture(autouse=True)
def _nothing_chosen_yet(monkeypatch):
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(autotune, "SCRATCH_BYTES", 1 << 14)


def logits(rows=3, V=64, dtype=torch.float32, odd=0):
    return torch.zeros(rows, V + odd, dtype=dtype)[:, odd:]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_fastest_candidate_is_chosen_once(kernel, monkeypatch, caplog):
    given = logits()
    candidates = configs.candidates(kernel, given)
    assert len(candidates) >= 4 and candidates[0] == configs.choose(kernel, given)
    trials = Trials(monkeypatch, {candidates[2]: 0.25, candidates[1]: 0.5})
    with caplog.at_level(logging.INFO, logger=autotune.__name__):
        assert autotune.best(kernel, given, measure=trials.milliseconds) == candidates[2]
    assert trials.launched == list(candidates)
    (record,) = caplog.messages
    assert kernel in record and f"block/warps {candidates[2].block}/{candidates[2].num_warps}" in record and "0.2500 ms" in record
    for rows, V in ((1, 64), (5000, 64), (7, 128)):
        assert autotune.best(kernel, logits(rows, V), measure=trials.milliseconds) == candidates[2]
    assert len(trials.launched) == len(candidates), "a new length was timed again"


def test_what_a_choice_depends_on(monkeypatch):
    """Kernel, bytes of a logit and of the gradient, alignment, softcap; never the number of rows or columns, nor the values."""
    trials, seen = Trials(monkeypatch, {}), []
    for kernel in ("rows_forward", "rows_backward"):
        for given in (logits(), logits(9, 160), logits(dtype=torch.bfloat16), logits(dtype=torch.float16), logits(odd=1), logits(V=63)):
            for tanh_in in (0.0, 0.03, 0.05):
                autotune.best(kernel, given, tanh_in, measure=trials.milliseconds)
                seen.append(len(autotune._chosen))
    assert seen == [1, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 5, 6, 6, 6, 6, 6] + [
        7,
        8,
        8,
        8,
        8,
        8,
        9,
        10,
        10,
        10,
        10,
        10,
        11,
        12,
        12,
        12,
        12,
        12,
    ]
    autotune.best("rows_backward", logits(), out_dtype=torch.bfloat16, measure=trials.milliseconds)
    assert len(autotune._chosen) == 13


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("odd", [0, 1])
def test_trials_touch_no_tensor_of_the_caller(kernel, odd, monkeypatch):
    """Every tensor of a launch is other memory, the gradient is no launch's input, and the caller's random numbers are not used up."""
    given, random = logits(odd=odd).normal_(), torch.get_rng_state()
    before, trials = given.clone(), Trials(monkeypatch, {})
    autotune.best(kernel, given, measure=trials.milliseconds)
    assert trials.tensors and torch.equal(given, before) and torch.equal(torch.get_rng_state(), random)
    places = {value.untyped_storage().data_ptr() for value in trials.tensors}
    assert given.untyped_storage().data_ptr() not in places
    matrices = [value for value in trials.tensors if value.dim() == 2 and value.shape[1] == 64]
    assert all(configs.aligned(value) == (not odd) for value in matrices)
    assert all(value.shape[0] == (1 << 14) // (64 * 4) for value in matrices), "the size of a trial is fixed"
    one_launch = matrices[: len(matrices) // len(trials.launched)]
    assert len({value.untyped_storage().data_ptr() for value in one_launch}) == (2 if kernel == "rows_backward" else 1)


def test_a_configuration_that_does_not_fit_is_passed_over(monkeypatch):
    trials, given = Trials(monkeypatch, {}), logits()
    candidates = configs.candidates("rows_forward", given)

    def milliseconds(launch, survivors):
        trials.milliseconds(launch)
        if trials.launched[-1] not in survivors:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    assert autotune.best("rows_forward", given, measure=lambda launch: milliseconds(launch, candidates[3:])) == candidates[3]
    assert autotune.best("rows_backward", given, measure=lambda launch: milliseconds(launch, ())) == candidates[0]


def test_double_precision_and_devices_without_a_clock_keep_the_table(monkeypatch):
    trials = Trials(monkeypatch, {})
    assert (
        autotune.best("rows_forward", logits(dtype=torch.float64), measure=trials.milliseconds) == configs.TABLE["sm_90"]["rows_forward"][8]
    )
    autotune._chosen.clear()
    assert autotune.best("rows_forward", logits()) == configs.TABLE["sm_90"]["rows_forward"][4]
    assert not trials.launched and not autotune._chosen


@pytest.mark.parametrize("value", [None, "0"])
def test_off_unless_asked_for(value, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(autotune, "best", lambda *arguments, **options: pytest.fail("timed without being asked"))
    assert rows_triton.config_for("rows_forward", logits(), 0.0) is None


@pytest.mark.parametrize("value", ["", "2", "true", "on"])
def test_any_other_value_raises(value, monkeypatch):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(
        ValueError, match=rf"rows_backward: GIGPO_FAST_AUTOTUNE must be 0 .* or 1 .*, got {value!r}; unset it or correct it"
    ):
        rows_triton.config_for("rows_backward", logits(), 0.0)


def test_the_launchers_get_what_was_chosen(monkeypatch):
    """From the environment variable to each of the three launches, with the dtype of the gradient where there is one."""
    monkeypatch.setenv(VARIABLE, "1")
    chosen, asked, given = configs.Config(2048, 4, 3), [], {}

    def best(kernel, value, tanh_in, *, out_dtype=None):
        asked.append((kernel, tanh_in, out_dtype))
        return chosen

    monkeypatch.setattr(autotune, "best", best)
    monkeypatch.setattr(rows_triton.forward, "rows_forward", lambda *arguments, squares, config: given.update(forward=config))
    monkeypatch.setattr(rows_triton.backward, "rows_backward", lambda *arguments, config: given.update(backward=config))
    x, one, ids = logits(), torch.ones(3), torch.zeros(3, dtype=torch.int64)
    rows_triton.rows_forward(x, ids, one, 0.5)
    rows_triton.rows_backward(x, ids, one, 0.5, one, one, one, one, x.bfloat16())

    class Launched(Exception):
        pass

    def launch(*arguments, config, **options):
        given.update(clip=config)
        raise Launched

    monkeypatch.setattr(clip_loss, "clip_rows_forward", launch)
    batch = clip_twin.TokenBatch(*[one] * len(clip_twin.TokenBatch._fields))
    with pytest.raises(Launched):
        clip_twin.score_with_twin(None, {}, x, ids, one, 0.0, batch, one)
    assert given == {"forward": chosen, "backward": chosen, "clip": chosen}
    assert asked == [("rows_forward", 0.5, None), ("rows_backward", 0.5, torch.bfloat16), ("clip_rows_forward", 0.0, None)]
    rows_triton.config_for("rows_forward", logits(rows=0), 0.0)
    assert len(asked) == 3, "nothing to launch, nothing to time"
