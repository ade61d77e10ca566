"""FusedGRPOTrainer on two processes: losses, gradients and metrics are those of TRL on two processes."""

import os
import pathlib
import re
import subprocess
import sys

from tests.frameworks.trl_runs import saved_model

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_two_processes():
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.frameworks.trl_two_processes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TINY_MODEL": saved_model()}
    ran = subprocess.run(
        [sys.executable, "-m", *launch], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert sorted(re.findall(r"rank \d agrees", ran.stdout)) == ["rank 0 agrees", "rank 1 agrees"]
