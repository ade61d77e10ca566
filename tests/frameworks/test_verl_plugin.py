"""verl finds our losses, estimators and trainers by itself, through the entry point `verl.plugins`; and the estimators against verl's own."""

import importlib.metadata
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import verl
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage

from gigpo_fast.integrations.verl import register
from gigpo_fast.integrations.verl_estimators import AS_IN_VERL, NAMES
from gigpo_fast.integrations.verl_objective import MODES
from tests.frameworks.verl_cases import close

LOSSES = [f"gigpo_fast_{mode}" for mode in MODES]
ESTIMATORS = [f"gigpo_fast_{name}" for name in NAMES]


def python(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=True)


def test_only_import_verl():
    """In a process of its own, which knows nothing of us."""
    found = importlib.metadata.entry_points(group="verl.plugins")
    assert [point.value for point in found if point.name == "gigpo_fast"] == ["gigpo_fast.integrations.verl_plugin"]
    program = "import verl; from verl.trainer.ppo import core_algos as c; print(*c.POLICY_LOSS_REGISTRY, *c.ADV_ESTIMATOR_REGISTRY)"
    names = python(program).stdout.split()
    assert set(LOSSES + ESTIMATORS) <= set(names) and "gigpo_fast_recipe_gspo" in names and "vanilla" in names
    assert not any(name.startswith("gigpo_fast") for name in python(program, VERL_USE_EXTERNAL_PLUGINS="none").stdout.split())


def test_the_trainers_are_there_with_verls_own():
    """Once the v1 trainers are imported, which takes seconds; a process that does not import them pays nothing."""
    program = "import sys, verl; print('verl.trainer.ppo.v1' in sys.modules); import verl.trainer.ppo.v1 as v1; "
    program += "print(*(v1.get_trainer_cls('gigpo_fast_' + mode).__mro__[2] is v1.get_trainer_cls(mode) for mode in MODES))"
    ran = python(program.replace("MODES", "('sync', 'colocate_async', 'separate_async')"))
    assert ran.stdout.split()[-4:] == ["False", "True", "True", "True"]


def test_what_goes_wrong_is_said():
    """verl hides what a plugin raises; ours warns before it does."""
    program = "import gigpo_fast.integrations.verl_version as v; v.TESTED = '9.9'; import verl; print('imported')"
    ran = python(program)
    assert "imported" in ran.stdout
    assert "gigpo_fast is not registered in verl: register: verl must be 9.9, got 0.9.1" in ran.stderr


def test_the_head_by_an_environment_variable():
    """verl's own way to have a module imported in every worker."""
    program = "import verl; from verl.utils.experimental import torch_functional as f; print(f.FusedLinearForPPO.__module__)"
    assert python(program).stdout.strip() == "verl.utils.experimental.torch_functional"
    used = python(program, VERL_USE_EXTERNAL_MODULES="gigpo_fast.integrations.verl_use_head").stdout.strip()
    assert used == "gigpo_fast.integrations.verl_head"


def test_registering_twice_is_registering_once():
    register()
    first = dict(core_algos.POLICY_LOSS_REGISTRY), dict(core_algos.ADV_ESTIMATOR_REGISTRY)
    register()
    assert first == (core_algos.POLICY_LOSS_REGISTRY, core_algos.ADV_ESTIMATOR_REGISTRY)
    assert set(LOSSES) <= first[0].keys() and set(ESTIMATORS) <= first[1].keys()
    assert not any(name.endswith("bypass_mode") for name in first[0] if name.startswith("gigpo_fast"))


def test_another_version_and_a_name_that_is_held(monkeypatch):
    monkeypatch.setattr(verl, "__version__", "0.7.0")
    with pytest.raises(ImportError, match=r"register: verl must be 0.9.1, got 0.7.0; .*pip install 'verl==0.9.1'"):
        register()
    monkeypatch.undo()
    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "gigpo_fast_gspo", print)
    with pytest.raises(ValueError, match="register: the policy loss gigpo_fast_gspo must be free or ours, got held by"):
        register()


def rollouts(seed: int = 0) -> DataProto:
    """Groups of 4, 3, 2 and 1 rows in mixed order; uids are strings; masks with holes; whole groups with equal scores are left out."""
    generator = torch.Generator().manual_seed(seed)
    uids = np.array(["c", "a", "b", "a", "d", "a", "b", "c", "a", "b"], dtype=object)
    mask = torch.arange(7) < torch.randint(2, 8, (10, 1), generator=generator)
    mask[:, 1] &= torch.rand(10, generator=generator) < 0.5
    mask[:, 0] = True
    tensors = {"token_level_rewards": torch.randn(10, 7, generator=generator) * mask, "response_mask": mask.long()}
    tensors["reward_baselines"] = torch.randn(10, generator=generator)
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uids})


@pytest.mark.parametrize("by_deviation", [True, False])
@pytest.mark.parametrize("name", AS_IN_VERL)
def test_estimators_equal_verls(name, by_deviation):
    """Through verl's compute_advantage, which decides what an estimator is given."""
    register()
    config = AlgoConfig(norm_adv_by_std_in_grpo=by_deviation, gamma=0.9)
    for seed in range(3):
        data = rollouts(seed)
        if name == "grpo_passk":  # verl raises for a group of one
            data = data.select_idxs([0, 1, 2, 3, 5, 6, 7, 8, 9])
        found = []
        for estimator in (name, f"gigpo_fast_{name}"):
            given = DataProto.from_dict(tensors=dict(data.batch.items()), non_tensors=dict(data.non_tensor_batch))
            out = compute_advantage(given, estimator, norm_adv_by_std_in_grpo=by_deviation, config=config)
            found.append((out.batch["advantages"], out.batch["returns"]))
        trained = data.batch["response_mask"].bool()
        for what, want, got in zip(("advantages", "returns"), *found):
            close(what, got[trained], want[trained], rtol=1e-5, atol=2e-6)
            if what == "advantages":
                assert not got[~trained].any()


def test_corrected_estimators():
    register()
    data, config = rollouts(), AlgoConfig()
    data.batch["response_mask"][3] = 0  # "a" loses a row
    data.batch["token_level_rewards"][[2, 6, 9]] = torch.tensor([0.1, 0, 0, 0, 0, 0, 0])  # "b" is constant
    scores, trained = data.batch["token_level_rewards"].sum(-1), data.batch["response_mask"].bool()
    for name in ("grpo_corrected", "rloo_corrected", "maxrl", "rank"):
        out = compute_advantage(data, f"gigpo_fast_{name}", config=config).batch["advantages"]
        assert not out[3].any() and not out[4].any() and not out[[2, 6, 9]].any(), name
        a = scores[[1, 5, 8]]
        want = {
            "grpo_corrected": (a - a.mean()) / (a.std() + 1e-6),
            "rloo_corrected": 1.5 * (a - a.mean()),
            "maxrl": (a - a.mean()) / a.mean() if a.mean() > 0 else torch.zeros(3),
            "rank": (2 * a.argsort().argsort() - 2) / 3,
        }[name]
        close(name, out[[1, 5, 8]], (want[:, None] * trained[[1, 5, 8]]))


def test_refusals_of_an_estimator():
    register()
    data = rollouts()
    rewards, mask = data.batch["token_level_rewards"], data.batch["response_mask"]
    get = core_algos.get_adv_estimator_fn
    with pytest.raises(ValueError, match="gigpo_fast_grpo: index must be the uid of every row, got None"):
        get("gigpo_fast_grpo")(rewards, mask)
    with pytest.raises(ValueError, match="gigpo_fast_grpo: index must be 10 uids, one a row, got 2 of them"):
        get("gigpo_fast_grpo")(rewards, mask, index=["a", "b"])
    with pytest.raises(ValueError, match="gigpo_fast_remax: reward_baselines must be given, got None"):
        get("gigpo_fast_remax")(rewards, mask, config=types.SimpleNamespace(norm_adv_by_std_in_grpo=True, gamma=1.0))
    with pytest.raises(ValueError, match=r"gigpo_fast_rloo: keywords must be those of verl's compute_advantage, got also \['values'\]"):
        get("gigpo_fast_rloo")(rewards, mask, index=list("abcdefghij"), values=rewards)
