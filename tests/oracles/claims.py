"""A claim about a file of recorded answers: how many of its cases there are, how many are not compared, and that all others agree."""

import pathlib
import re

from . import runner


def worst_error(capsys, folder: pathlib.Path, file: str, cases: str, count: int, excluded: int) -> float:
    """The largest error of the compared cases as a share of its tolerance; fails if a case disagrees, is missing or is not supported."""
    code = runner.main([str(folder), "--only", f"{file}={cases}"])
    printed = capsys.readouterr().out
    found = re.match(rf"{file}: {count - excluded} of {count} agree, worst error (\S+) of its tolerance\n", printed)
    assert code == 0 and found and float(found[1]) <= 1, printed
    assert "disagrees" not in printed and "not supported" not in printed
    return float(found[1])
