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
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"triton", "transformers", "matplotlib", "gymnasium", "liger_kernel"}:
            raise ModuleNotFoundError(f"{name} is blocked: the example must need torch alone", name=name)
sys.meta_path.insert(0, Blocked())
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
