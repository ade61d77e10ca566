"""The runner: sends every recorded case through its adapter, compares, and prints what agrees and what does not."""

import argparse
import fnmatch
import pathlib
import re
import sys
from typing import NamedTuple

from . import (
    advantage_files,
    liger,
    loss_files,
    method_losses,
    preference_files,
    step_credit,
    verl_advantage,
    verl_agent,
    verl_kl,
    verl_loss,
)
from .adapter import Adapter, Unsupported
from .compare import compare
from .tensors import Case, read_cases

SUFFIX = ".json.gz"
ADAPTERS = {
    "liger_linear_grpo": liger.ADAPTER,
    "liger_linear_grpo_reference": liger.ADAPTER,
    "verl_advantage": verl_advantage.ADAPTER,
    "verl_agent_gigpo": verl_agent.ADAPTER,
    "verl_agent_gigpo_rollouts": verl_agent.ROLLOUTS_ADAPTER,
    "verl_kl": verl_kl.ADAPTER,
    "verl_policy_loss": verl_loss.ADAPTER,
    **advantage_files.ADAPTERS,
    **advantage_files.PARTS,
    **loss_files.ADAPTERS,
    **preference_files.ADAPTERS,
    **step_credit.ADAPTERS,
    **method_losses.ADAPTERS,
}


class Report(NamedTuple):
    """What came of the cases of one file."""

    cases: int
    worst: float  # over the cases that were answered: the largest error as a share of its tolerance
    disagree: list[str]
    unsupported: list[str]
    looser: dict[str, list[str]]  # by output, the cases that needed its looser tolerance
    excluded: list[str] = []  # cases that are not compared, and why


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code: 1 if a case disagrees or is not supported yet."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.oracles", description="Compare gigpo_fast with what other projects' code answered."
    )
    parser.add_argument("folder", type=pathlib.Path, help="folder of recorded answers (*.json.gz)")
    parser.add_argument(
        "--rollouts",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="where the rollout files lie that cases name (repeatable; default: the folder `rollouts` beside FOLDER)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FILE=REGEX",
        help="of this file the cases whose name the expression finds (repeatable; then files not named are left out)",
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder; pass the one that holds the *.json.gz files")
    files = {path.name.removesuffix(SUFFIX): path for path in sorted(options.folder.glob(f"*{SUFFIX}"))}
    if not files:
        parser.error(f"{options.folder} holds no *{SUFFIX} files; a folder inside it is a folder of its own")
    selection = _selection(parser, options.only, files)
    rollouts = options.rollouts or [options.folder.parent / "rollouts"]

    agreed = True
    for name, patterns in selection.items():
        cases = [case for case in read_cases(files[name], rollouts) if any(pattern.search(case.name) for pattern in patterns)]
        if not cases:
            parser.error(f"--only {name}={patterns[0].pattern} finds no case")
        report = run(cases, ADAPTERS.get(name))
        _print(name, report, ADAPTERS.get(name))
        agreed = agreed and not report.disagree and not report.unsupported
    return 0 if agreed else 1


def run(cases: list[Case], adapter: Adapter | None) -> Report:
    """Answer and compare every case; an exception is a disagreement, so that one case never hides the next."""
    report = Report(len(cases), 0.0, [], [], {}, [])
    for case in cases:
        if adapter is not None and case.name in adapter.excluded:
            report.excluded.append(f"{case.name}: {adapter.excluded[case.name]}")
            continue
        try:
            if adapter is None:
                raise Unsupported("no adapter for this file")
            answer = adapter.answer(case)
            wanted = {name: value for name, value in case.outputs.items() if name in answer.outputs or not _matches(name, adapter.outside)}
            found = compare(answer, wanted, adapter.looser)
        except Unsupported as missing:
            report.unsupported.append(f"{case.name}: {missing}")
            continue
        except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
            report.disagree.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        report = report._replace(worst=max(report.worst, found.worst))
        if found.faults:
            report.disagree.append(f"{case.name}: {'; '.join(found.faults)}")
        for output in found.looser:
            report.looser.setdefault(output, []).append(case.name)
    return report


def _matches(name: str, patterns: dict[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _selection(parser: argparse.ArgumentParser, only: list[str], files: dict[str, pathlib.Path]) -> dict[str, list[re.Pattern]]:
    """Which files are run, and the expressions that select their cases."""
    if not only:
        return {name: [re.compile("")] for name in files}
    selection: dict[str, list[re.Pattern]] = {}
    for argument in only:
        name, equals, pattern = argument.partition("=")
        if not equals or name not in files:
            parser.error(f"--only {argument}: expected FILE=REGEX with FILE one of {', '.join(files)}")
        try:
            selection.setdefault(name, []).append(re.compile(pattern))
        except re.error as error:
            parser.error(f"--only {argument}: {error}")
    return selection


def _print(name: str, report: Report, adapter: Adapter | None) -> None:
    answered = report.cases - len(report.unsupported)
    worst = f", worst error {report.worst:.3g} of its tolerance" if answered else ""
    print(f"{name}: {answered - len(report.disagree) - len(report.excluded)} of {report.cases} agree{worst}")
    for note in adapter.notes if adapter else ():
        print(f"  note: {note}")
    for reason in dict.fromkeys(adapter.outside.values() if adapter else ()):
        print(f"  not compared: {', '.join(name for name, why in adapter.outside.items() if why == reason)}: {reason}")
    for output, cases in report.looser.items():
        print(f"  looser tolerance: {output} in {', '.join(cases)}: {adapter.looser[output]}")
    for line in report.excluded:
        print(f"  not compared: {line}")
    for line in report.disagree:
        print(f"  disagrees: {line}")
    for line in report.unsupported:
        print(f"  not supported yet: {line}")
    sys.stdout.flush()
