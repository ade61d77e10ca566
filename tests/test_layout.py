"""The shape of the repository: which file may import which, how long a file may be, and what no file may mention.

Imports point one way, from level 6 down to level 0, so that any file can be read after the few it stands on.
"""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE_FOLDERS = ("gigpo_fast", "kernels", "csrc", "bench", "tests", "examples", "scripts")
CODE_SUFFIXES = (".py", ".cpp", ".cu", ".h", ".sh")
TEXT_SUFFIXES = (*CODE_SUFFIXES, ".md", ".toml", ".in", ".cff", ".txt", ".yaml", ".json", "")
LINE_LIMITS = {"README.md": 200, "CONTRIBUTING.md": 110}
MAX_LINES = 400
LINKS = ("kernels", "csrc")  # folders at the root that the package reaches through a link

# Level of each module or package directly below gigpo_fast. A file may import its own level and the ones below.
LEVELS = {
    "kernels": 0,
    "reference": 0,
    "types": 1,
    "checks": 1,
    "arrays": 1,
    "values": 1,
    "settings": 1,
    "backend": 1,
    "inference": 1,
    "native_memory": 1,
    "once": 1,
    "metrics": 1,
    "collectives": 1,
    "segments": 1,
    "transforms": 1,
    "constants": 1,
    "head": 2,
    "packing": 2,
    "linear_head": 2,
    "sequences": 2,
    "sharded_head": 2,
    "objective": 2,
    "plan": 2,
    "advantage": 2,
    "anchor": 2,
    "reward": 2,
    "ops": 3,
    "logprob": 4,
    "owned_head": 5,
    "unfused": 5,
    "pairwise": 4,
    "loss": 5,
    "keywords": 5,
    "recipes": 5,
    "distributed": 5,
    "tokens": 5,
    "rollouts": 5,
    "main_grad": 4,
    "testing": 6,
    "selftest": 6,
    "doctor": 6,
    "__main__": 6,
    "integrations": 6,
}
REFERENCE_READERS = 6  # the reference is for judging: only testing, selftest and doctor may read it


@functools.cache
def _files(*suffixes: str) -> list[pathlib.Path]:
    """Files that belong to the repository, without what builds and runs leave behind."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:  # an unpacked archive has no git
        tops = [path for path in ROOT.iterdir() if path.is_file() or path.name in (*CODE_FOLDERS, ".ci")]
        paths = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    found = {path for path in paths if path.suffix in suffixes and path.is_file() and not path.is_symlink()}
    links = {ROOT / "gigpo_fast" / name for name in LINKS}
    return sorted(path for path in found if "__pycache__" not in path.parts and not links & set(path.parents))


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _product_files() -> list[pathlib.Path]:
    return [path for path in _files(".py") if _name(path).startswith(("gigpo_fast/", "kernels/"))]


def _unit(path: pathlib.Path) -> str:
    """The module or package below gigpo_fast that a file belongs to; "" for gigpo_fast/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        return "kernels"
    return "" if parts[1] == "__init__" else parts[1]


def _imports(path: pathlib.Path) -> list[tuple[str, bool, int]]:
    """(absolute dotted name, at module level, line) of every import in a file; relative ones are resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = (["gigpo_fast"] if parts[0] == "kernels" else []) + parts[:-1]
    found = []
    for node in ast.walk(tree):
        deferred = id(node) in inside or id(node) in typing_only
        if isinstance(node, ast.Import):
            found += [(alias.name, not deferred, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` names a module; `from .x import y` names something inside one
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "gigpo_fast" else [module]
            found += [(name, not deferred, node.lineno) for name in names]
    return found


def _unit_of(name: str) -> str | None:
    """The unit a dotted name lies in, or None if it is not ours."""
    parts = name.split(".")
    if parts[0] == "kernels":
        return "kernels"
    if parts[0] != "gigpo_fast":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVELS else ""


def _is_adapter(stem: str) -> bool:
    """x_triton.py and x_native.py may import kernels at the top, because they are themselves imported inside functions only."""
    return stem.endswith(("_triton", "_native"))


def test_every_file_has_a_level():
    unknown = sorted({_unit(path) for path in _product_files()} - set(LEVELS) - {""})
    assert not unknown, f"give these a level in tests/test_layout.py: {unknown}"


@pytest.mark.parametrize("path", _product_files(), ids=_name)
def test_imports_point_down(path):
    own, wrong = _unit(path), []
    for name, at_top, line in _imports(path):
        unit = _unit_of(name)
        if unit is None or unit == own or unit == "":
            continue
        if own == "":
            lawful = LEVELS[unit] == 1
        elif unit == "kernels":
            lawful = LEVELS[own] > 0 and (not at_top or _is_adapter(path.stem))
        elif unit == "reference":
            lawful = LEVELS[own] >= REFERENCE_READERS
        else:
            lawful = LEVELS[own] > 0 and LEVELS[unit] <= LEVELS[own]
        if not lawful:
            wrong.append(f"{_name(path)}:{line} (level {LEVELS.get(own, 0)}) imports {name} (level {LEVELS[unit]})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", _product_files(), ids=_name)
def test_adapters_load_on_first_use(path):
    tops = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [part for node in tops for part in (*(getattr(node, "module", None) or "").split("."), *(alias.name for alias in node.names))]
    adapters = {file.stem for file in _product_files() if _is_adapter(file.stem)}
    wrong = [name for name in names if name in adapters and not _is_adapter(path.stem)]
    assert len(adapters) >= 2
    assert not wrong, f"{_name(path)} imports {wrong} at module level; import an adapter inside the function that needs it"


@pytest.mark.parametrize("path", _product_files(), ids=_name)
def test_imports_at_module_level_need_torch_alone(path):
    allowed = {"torch", "gigpo_fast"} | ({"triton"} if _unit(path) == "kernels" else set())
    wrong = [
        f"{_name(path)}:{line} imports {name}"
        for name, at_top, line in _imports(path)
        if at_top and name.split(".")[0] not in allowed | set(sys.stdlib_module_names)
    ]
    assert not wrong, "import these inside the function that needs them:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in _product_files() if _unit(p) in ("kernels", "reference")], ids=_name)
def test_kernels_and_reference_stand_alone(path):
    allowed = {"torch"} | ({"triton"} if _unit(path) == "kernels" else set()) | set(sys.stdlib_module_names)
    own = f"gigpo_fast.{_unit(path)}"
    wrong = [name for name, _, _ in _imports(path) if name.split(".")[0] not in allowed and name != own and not name.startswith(f"{own}.")]
    assert not wrong, f"{_name(path)} imports {wrong}"


def test_kernels_and_csrc_are_links_without_init():
    # With an __init__.py the folder would shadow the distribution named `kernels` for whoever runs from the root.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for name in LINKS:
        link = ROOT / "gigpo_fast" / name
        assert link.samefile(ROOT / name)
        assert link.readlink() == pathlib.Path("..", name), "the link must be relative, or a clone breaks it"


@pytest.mark.parametrize("path", _files(*CODE_SUFFIXES), ids=_name)
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{_name(path)} has {lines} lines; split it by idea"


@pytest.mark.parametrize("name, limit", LINE_LIMITS.items())
def test_documents_are_short(name, limit):
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{name} has {lines} lines, the limit is {limit}"


@pytest.mark.parametrize("path", _files(".py"), ids=_name)
def test_python_files_say_their_idea(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring and len(docstring.split()) >= 3, f"{_name(path)} must start with a paragraph that says its idea"


def test_no_file_names_a_machine_or_a_registry():
    # Spelled in pieces, so that this file passes its own test.
    machine = ["/" + name + "/" for name in ("root", "home", "work", "Users", "tmp/w")]
    registry = [name + ".org" for name in ("pypi", "download.pytorch", "files.pythonhosted")] + ["pythonhosted" + ".org"]
    wrong = []
    for path in _files(*TEXT_SUFFIXES):
        if _name(path).startswith("examples/rollouts/"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1):
            wrong += [f"{_name(path)}:{number} mentions {word}" for word in machine + registry if word in line]
    assert not wrong, "\n".join(wrong)


def test_the_checks_see_a_fault(tmp_path, monkeypatch):
    """The walker itself: an upward import inside a function and a module-level kernel import are both seen."""
    folder = tmp_path / "gigpo_fast" / "advantage"
    folder.mkdir(parents=True)
    file = folder / "bad.py"
    file.write_text("from ..kernels import rows\nfrom .. import loss\n\ndef f():\n    from ..loss import policy_loss\n    import numpy\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    found = {(name, at_top) for name, at_top, _ in _imports(file)}
    assert found == {("gigpo_fast.kernels", True), ("gigpo_fast.loss", True), ("gigpo_fast.loss", False), ("numpy", False)}
    with pytest.raises(AssertionError, match="imports gigpo_fast.loss"):
        test_imports_point_down(file)
