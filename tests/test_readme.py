"""README.md is executed: its first example runs as printed, with torch and nothing else, and every Python block at least parses."""

import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

BLOCK_OTHERS = """
import sys
class Without:
    finders = list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        blocked = name.split(".")[0] in {"triton", "transformers", "matplotlib", "gymnasium", "liger_kernel"}
        return None if blocked else next((spec for spec in found if spec is not None), None)
sys.meta_path[:] = [Without()]
"""
CHECK = """
import math
assert math.isfinite(output.loss.item())
gradient = log_probs.grad
assert gradient is not None and gradient.shape == log_probs.shape and gradient.abs().sum() > 0
print("ran")
"""


def test_first_example_is_eight_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) == 8
    assert max(map(len, lines)) <= 140


def test_first_example_runs_with_torch_alone():
    ran = subprocess.run(
        [sys.executable, "-c", BLOCK_OTHERS + BLOCKS[0] + CHECK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "ran"


def test_surrogate_example_trains():
    import torch

    from gigpo_fast.loss import linear_policy_loss, policy_loss

    (block,) = [block for block in BLOCKS if "(Surrogate)" in block]
    names: dict = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    objective = names["objective"]
    hidden, weight, token_ids = torch.randn(2, 5, 8), torch.randn(11, 8), torch.randint(0, 11, (2, 5))
    advantages, mask = torch.randn(2, 5), torch.ones(2, 5, dtype=torch.bool)
    plain, fused = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    log_probs = torch.log_softmax(plain @ weight.T, -1).gather(-1, token_ids[..., None]).squeeze(-1)
    old = log_probs.detach() - 0.3 * torch.rand(2, 5)
    want = (-advantages * torch.tanh(5.0 * ((log_probs - old).exp() - 1)) / 5.0).mean()
    want.backward()
    unfused = policy_loss(log_probs.detach(), advantages, mask, old_log_probs=old, objective=objective).loss
    torch.testing.assert_close(unfused, want.detach())
    got = linear_policy_loss(fused, weight, token_ids, advantages, mask, old_log_probs=old, objective=objective).loss
    got.backward()
    torch.testing.assert_close(got.detach(), want.detach())
    torch.testing.assert_close(fused.grad, plain.grad)


def test_every_python_block_parses():
    assert len(BLOCKS) >= 3
    for block in BLOCKS:
        ast.parse(block)


def test_paths_named_in_the_readme_exist():
    tree = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL).group(1)
    named = [line.split()[0] for line in tree.splitlines() if line.strip() and not line.startswith(" " * 20)]
    missing, folder = [], pathlib.Path()
    for line in tree.splitlines():
        if not line.strip():
            continue
        word, indented = line.split()[0], line.startswith("  ")
        path = (folder / word) if indented else pathlib.Path(word)
        if not indented:
            folder = path if word.endswith("/") else pathlib.Path()
        if not (ROOT / path).exists():
            missing.append(path.as_posix())
    assert len(named) >= 20
    assert not missing, f"the file tree in README.md names {missing}, which do not exist"


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"sure"}
    assert {"demo", "test"} <= named
    assert named <= targets, f"README.md names make targets that do not exist: {named - targets}"
