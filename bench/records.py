"""Records of runs: one CSV row a peer and shape, appended, with everything that is needed to read it a year later."""

import csv
import datetime
import functools
import hashlib
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bench.peers import version_of

FOLDER = pathlib.Path(__file__).resolve().parent / "records"
OURS = "gigpo_fast"


class Record(NamedTuple):
    """What one peer took for one shape. Limits have no answer, so no errors."""

    problem: str
    shape: str
    tokens: int
    hidden: int
    vocabulary: int
    dtype: str
    trained: float
    active: float
    frozen: bool
    peer: str
    peer_version: str
    seconds: float  # median, forward and backward together
    ours_seconds: float  # median of ours in the same rounds
    ratio: float  # seconds / ours_seconds: above 1, ours is faster
    peak_bytes: int | None  # what the step adds at its peak, gradients included
    error_value: float | None  # largest error against float64 as a share of the largest entry
    error_d_hidden: float | None
    error_d_weight: float | None
    error_d_logits: float | None


class Machine(NamedTuple):
    """Where and with what a run was made."""

    date: str
    commit: str
    device: str
    threads: int
    torch: str
    triton: str
    liger: str


COLUMNS = (*Machine._fields, *Record._fields)


def machine(device: torch.device) -> Machine:
    """This machine, now."""
    return Machine(
        datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        commit(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        torch.get_num_threads(),
        torch.__version__,
        version_of("triton"),
        version_of("liger-kernel"),
    )


@functools.cache
def commit(folder: pathlib.Path = FOLDER.parent) -> str:
    """git describe of the clone this runs from; outside one "no git" and a digest of the product's sources, which tells two texts apart."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return _without_git()
    return ran.stdout.strip() if ran.returncode == 0 and ran.stdout.strip() else _without_git()


def _without_git() -> str:
    root, digest = FOLDER.parent.parent, hashlib.sha256()
    for path in sorted(path for top in ("gigpo_fast", "kernels", "csrc") for path in (root / top).rglob("*")):
        if path.suffix in (".py", ".cu", ".cpp", ".h") and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"no git, sources {digest.hexdigest()[:12]}"


def processor() -> str:
    """The CPU's name and how many of its cores there are."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def append(path: pathlib.Path, where: Machine, rows: Iterable[Record]) -> None:
    """Add rows to a CSV file, made with its header if it is new. A file with other columns is refused."""
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header != COLUMNS:
            raise ValueError(f"{path} has other columns than {COLUMNS}; move it away, and a new one is begun")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([_text(value) for value in (*where, *row)] for row in rows)


def read(path: pathlib.Path) -> list[tuple[Machine, Record]]:
    """All rows of a file, in order."""
    with path.open(newline="") as file:
        found = []
        for line in csv.DictReader(file):
            numbers = {name: _value(text) if name in _NUMBERS else text for name, text in line.items()}
            split = [kind(**{name: numbers[name] for name in kind._fields}) for kind in (Machine, Record)]
            found.append((split[0], split[1]._replace(frozen=line["frozen"] == "True")))
    return found


_NUMBERS = {
    *("threads", "tokens", "hidden", "vocabulary", "trained", "active", "seconds", "ours_seconds", "ratio", "peak_bytes"),
    *("error_value", "error_d_hidden", "error_d_weight", "error_d_logits"),
}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(text: str) -> float | int | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
