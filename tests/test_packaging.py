"""What a user receives: the wheel's contents, what an import costs and needs, and peace with other packages.

Wheels are built from a copy: building in place leaves folders behind that would leak into the next build.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = (
    "gigpo_fast",
    "kernels",
    "csrc",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "NOTICE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "Makefile",
)
OPTIONAL = ("triton", "transformers", "numpy", "matplotlib", "gymnasium", "tqdm", "liger_kernel")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++").split()[0]) is None, reason="no C++ compiler on PATH (apt install g++), nothing to build"
)


def _python(code: str, *, cwd: pathlib.Path = ROOT, paths: tuple = (), **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter whose module path is `paths`, then this environment."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)


def _build(folder: pathlib.Path, what: str, ext: str) -> pathlib.Path:
    """Build a wheel or sdist of a copy of the sources; the path of the archive."""
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(path, source / name)
    out = folder / "out"
    out.mkdir()
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(out)!r}))"
    ran = _python(code, cwd=source, GIGPO_EXT=ext)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("pure"), "wheel", "off")


def _names(wheel: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _top_levels(names: list[str]) -> set[str]:
    return {top for top in (name.split("/")[0] for name in names) if not top.endswith(".dist-info")}


def test_packages_are_the_folders():
    listed = _project()["packages"]
    on_disk = {"gigpo_fast", "gigpo_fast.kernels"}
    for folder in (ROOT / "gigpo_fast").rglob("*"):
        # links are walked by some Python versions and not by others: kernels is named above, csrc holds no Python
        if folder.is_dir() and not folder.is_symlink() and "kernels" not in folder.parts and any(folder.glob("*.py")):
            on_disk.add(".".join(folder.relative_to(ROOT).parts))
    assert sorted(listed) == sorted(on_disk)
    assert listed == sorted(listed)


def _project() -> dict:
    """The [tool.setuptools] table, read by setuptools itself (tomllib is younger than our oldest Python)."""
    from setuptools.config.pyprojecttoml import read_configuration

    return read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]


def test_pure_wheel(pure_wheel):
    names = _names(pure_wheel)
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert _top_levels(names) == {"gigpo_fast"}
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


def test_wheel_holds_every_module(pure_wheel):
    names = set(_names(pure_wheel))
    sources = [path for path in (ROOT / "gigpo_fast").rglob("*.py") if "kernels" not in path.parts and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in sources}
    wanted |= {f"gigpo_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert wanted <= names, f"missing from the wheel: {sorted(wanted - names)}"
    assert len([name for name in names if name.startswith("gigpo_fast/kernels/")]) >= 2
    assert {"gigpo_fast/py.typed", "gigpo_fast/csrc/anchor_cuda.cu", "gigpo_fast/csrc/anchor_hash.h"} <= names
    assert "gigpo_fast/csrc/anchor_cpu.cpp" not in names, "what is compiled at install time need not travel"
    assert {"LICENSE", "NOTICE"} <= {name.split("/")[-1] for name in names if "dist-info" in name}


@needs_compiler
def test_native_wheel(tmp_path):
    wheel = _build(tmp_path, "wheel", "cpu")
    names = _names(wheel)
    assert "-cp310-abi3-" in wheel.name, "one wheel must serve every Python from 3.10 on"
    assert _top_levels(names) == {"gigpo_fast"}
    (library,) = [name for name in names if name.endswith(".so")]
    assert library == "gigpo_fast/_C.abi3.so"
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert archive.getinfo(library).file_size < 2_000_000
    ran = _python(
        """
        import torch, gigpo_fast
        from gigpo_fast import backend
        print(gigpo_fast.__file__)
        print(backend.why_not_native(torch.device("cpu")))
        """,
        cwd=tmp_path,
        paths=(site,),
    )
    assert ran.returncode == 0, ran.stderr
    where, reason = ran.stdout.split("\n")[:2]
    assert where.startswith(str(site)), "the test must load the wheel, not the working tree"
    assert reason == "None"


def test_sdist_holds_the_native_sources(tmp_path):
    import tarfile

    with tarfile.open(_build(tmp_path, "sdist", "off")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").iterdir() if path.suffix in (".cpp", ".cu", ".h")}
    wanted |= {f"gigpo_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert len(wanted) >= 4 and wanted <= names, f"missing from the sdist: {sorted(wanted - names)}"


RUN_SETUP = "import runpy, sys; sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py')"


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"GIGPO_EXT": "cpu", "CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"GIGPO_EXT": "sometimes"}, "must be auto, off, cpu or cuda"),
    ],
)
def test_a_native_library_that_was_asked_for_is_not_left_out(environment, message):
    ran = _python(RUN_SETUP, **environment)
    assert ran.returncode != 0
    assert message in ran.stderr


@pytest.mark.parametrize("version, enough", [("65.5.0", False), ("76.1", False), ("77.0.3", True), ("84.0.1.post2", True)])
def test_an_old_setuptools_gets_one_line(tmp_path, version, enough):
    """A build without isolation takes what is there; older ones cannot read the license in pyproject.toml, and say so in forty lines."""
    (tmp_path / "setuptools.py").write_text(f"__version__ = {version!r}\ndef setup(**keywords): print('set up')\n")
    ran = _python(RUN_SETUP, paths=(tmp_path,), GIGPO_EXT="off")
    if enough:
        assert ran.returncode == 0 and ran.stdout.split() == ["set", "up"], ran.stderr
    else:
        line = f"setup.py: setuptools {version} is too old, 77 or newer is needed: pip install 'setuptools>=77'"
        assert ran.returncode == 1 and ran.stderr.splitlines() == [line]


def test_auto_without_a_compiler_says_why():
    ran = _python(RUN_SETUP, GIGPO_EXT="auto", CXX="no-such-compiler")
    assert ran.returncode == 0, ran.stderr
    assert "building without the cpu library: no C++ compiler ('no-such-compiler' is not on PATH)" in ran.stderr


# What is not installed is not found: no finder may see these names.
BLOCK = f"""
import sys
class Without:
    finders = list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return None if name.split(".")[0] in {OPTIONAL!r} else next((spec for spec in found if spec is not None), None)
    def find_distributions(self, *args):
        return (found for finder in self.finders if hasattr(finder, "find_distributions") for found in finder.find_distributions(*args))
sys.meta_path[:] = [Without()]
"""


def test_optional_packages_are_optional():
    ran = _python(
        BLOCK
        + textwrap.dedent("""
        import importlib, torch, gigpo_fast
        for name in gigpo_fast.__all__:
            getattr(gigpo_fast, name)
        from gigpo_fast import advantage, anchor, loss, recipes, testing
        scores = advantage.group_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
        groups = anchor.group_states(["a", "b", "a"])
        assert groups.ids.tolist() == [0, 1, 0]
        hidden, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
        mask = torch.ones(2, 3, dtype=torch.bool)
        advantages = scores[:, None].expand(2, 3).contiguous()
        loss.linear_grpo_loss(hidden, weight, torch.zeros(2, 3, dtype=torch.int64), advantages, mask).loss.backward()
        assert hidden.grad.isfinite().all() and weight.grad.abs().sum() > 0
        print("ran")
        """)
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "ran"


WITHOUT_NUMPY = ("test_advantage.py", "test_anchor_normalise.py", "test_reward.py", "test_segments.py")


def test_only_numpy_inputs_need_numpy():
    """Whole files of tests where NumPy cannot be found: only tests that hand arrays over may mind."""
    code = f"""
    import pytest, sys
    files = [f"tests/{{name}}" for name in {WITHOUT_NUMPY!r}]
    options = ["-q", "-k", "not numpy and not array", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark"]
    code = pytest.main([*options, *files])
    assert "numpy" not in sys.modules
    sys.exit(code)
    """
    ran = _python(BLOCK + textwrap.dedent(code), OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]


def test_import_is_cheap_and_does_nothing():
    ran = _python(
        """
        import os, sys, threading, time
        import torch
        modules, libraries, threads = set(sys.modules), set(torch.ops.loaded_libraries), threading.active_count()
        reads = []
        class Watched(dict):
            def __getitem__(self, key): reads.append(key); return super().__getitem__(key)
            def get(self, key, *default): reads.append(key); return super().get(key, *default)
        environ, os.environ = os.environ, Watched(os.environ)
        start = time.perf_counter()
        import gigpo_fast
        milliseconds = 1000 * (time.perf_counter() - start)
        os.environ = environ
        ours = {name for name in set(sys.modules) - modules}
        strangers = sorted(name for name in ours if name.split(".")[0] not in sys.stdlib_module_names | {"gigpo_fast", "torch"})
        assert not strangers, f"import gigpo_fast loads {strangers}"
        assert not [name for name in ours if "kernels" in name], ours
        assert set(torch.ops.loaded_libraries) == libraries, "a native library was loaded"
        assert threading.active_count() == threads
        assert not reads, f"the environment was read: {reads}"
        print(milliseconds)
        """
    )
    assert ran.returncode == 0, ran.stderr
    times = [float(ran.stdout.split()[-1])]
    while min(times) >= 50 and len(times) < 5:  # a loaded machine can only make it look slower, so the best of a few counts
        again = _python("import torch, time; start = time.perf_counter(); import gigpo_fast; print(1000 * (time.perf_counter() - start))")
        times.append(float(again.stdout))
    assert min(times) < 50, f"import gigpo_fast adds {min(times):.0f} ms to torch's own import"


def test_public_modules_load_no_kernel_and_no_library():
    ran = _python(
        """
        import sys, torch, gigpo_fast
        for name in gigpo_fast.__all__:
            getattr(gigpo_fast, name)
        assert not [name for name in sys.modules if name.startswith(("gigpo_fast.kernels", "kernels"))]
        assert not [path for path in torch.ops.loaded_libraries if "gigpo_fast" in str(path)]
        print(sorted({"triton", "transformers", "matplotlib"} & set(sys.modules)))
        """
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["[]"]


def test_kernels_are_importable_under_our_name():
    assert importlib.util.find_spec("gigpo_fast.kernels") is not None
    found = importlib.util.find_spec("gigpo_fast.kernels.common")
    assert found is not None and pathlib.Path(found.origin).parent.resolve() == ROOT / "kernels"


def test_folder_kernels_hides_nobody(tmp_path):
    """A distribution named `kernels` exists. From the repository root, where our folder is first on the path, it must still win."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from unittest import mock\nMARK = 'theirs'\ndef __getattr__(name): return mock.MagicMock()\n")
    metadata = tmp_path / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    ran = _python("import kernels, sys; print(sys.path[0] == '', kernels.MARK); import gigpo_fast.kernels.common", paths=(tmp_path,))
    if importlib.util.find_spec("triton") is None:
        assert "No module named 'triton'" in ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "theirs"]
    if importlib.util.find_spec("transformers") is not None:
        ran = _python("import transformers.integrations.hub_kernels; print('ran')", paths=(tmp_path,))
        assert ran.returncode == 0, ran.stderr
    alone = _python("import importlib.util; spec = importlib.util.find_spec('kernels'); print(spec.origin if spec else None)")
    assert alone.stdout.split() == ["None"], "a namespace without origin at most: never a module of ours under that name"
