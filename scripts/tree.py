"""A copy of the working tree without anything that was built: what a clone is on a machine without a compiler.

python scripts/tree.py FOLDER      # FOLDER is made anew
"""

import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis", ".benchmarks", "*_out")


def copy(folder: pathlib.Path) -> None:
    """Make `folder` a copy of the tree. Links inside the tree stay links."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    copy(pathlib.Path(sys.argv[1]))
