"""The CUDA kernels compile with NVRTC alone, all in one run of it, and what it made is kept for the next process."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from gigpo_fast.anchor import cuda, nvrtc
from tests.anchor_helpers import ROOT

ARCHITECTURES = ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"]
SMALL = 'extern "C" __global__ void small(int* p) { *p = 1; }'


@pytest.fixture
def library():
    try:
        return nvrtc.load()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gigpo_fast"


@pytest.fixture
def runs(monkeypatch):
    """Compilations that were asked for; they take no time and need no NVRTC."""
    made = []
    monkeypatch.setattr(nvrtc, "load", lambda: None)
    monkeypatch.setattr(nvrtc, "version", lambda library: "13.0")
    monkeypatch.setattr(
        nvrtc, "compile_source", lambda library, source, architecture: made.append(architecture) or f"code {source}".encode()
    )
    return made


class Counted:
    """NVRTC, with its compilations counted."""

    def __init__(self, library):
        self.library, self.compilations = library, 0

    def __getattr__(self, name):
        self.compilations += name == "nvrtcCompileProgram"
        return getattr(self.library, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_compilation_makes_all_kernels_without_a_toolkit(library, architecture, cache, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")  # no nvcc
    counted = Counted(library)
    monkeypatch.setattr(nvrtc, "load", lambda: counted)
    code = nvrtc.cubin(cuda.source(), architecture)
    assert counted.compilations == 1 and code.startswith(b"\x7fELF")
    assert all(f".text.{name}\0".encode() in code for name in cuda.KERNELS)
    assert nvrtc.cubin(cuda.source(), architecture) == code and counted.compilations == 1


def test_what_the_compiler_says_is_the_message(library, cache):
    with pytest.raises(
        RuntimeError, match=r"NVRTC: NVRTC_ERROR_COMPILATION for sm_90: gigpo_fast.cu\(1\): error: .*undeclared.* is undefined"
    ):
        nvrtc.cubin('extern "C" __global__ void f() { undeclared(); }', "sm_90")
    with pytest.raises(RuntimeError, match=r"NVRTC: NVRTC_ERROR_INVALID_OPTION for sm_10: .*--gpu-architecture"):
        nvrtc.cubin(SMALL, "sm_10")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_machine_without_nvrtc_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(nvrtc, "candidates", lambda: ["libnothing.so.0"])
    monkeypatch.setattr(nvrtc.torch.version, "cuda", "13.0")
    with pytest.raises(RuntimeError, match=r"was not found \(pip install nvidia-cuda-nvrtc\)$"):
        nvrtc.load()
    monkeypatch.setattr(nvrtc.torch.version, "cuda", "12.8")
    with pytest.raises(RuntimeError, match=r"was not found \(pip install nvidia-cuda-nvrtc-cu12\)$"):
        nvrtc.load()


def test_torchs_own_version_comes_first_then_any_wheel(tmp_path, monkeypatch):
    names = {
        "cuda_nvrtc": ["libnvrtc.so.12", "libnvrtc-builtins.so.12.8", "libnvrtc.alt.so.12"],
        "cu13": ["libnvrtc.so.13", "libcufft.so.12"],
    }
    for folder, files in names.items():
        (tmp_path / folder / "lib").mkdir(parents=True)
        for file in files:
            (tmp_path / folder / "lib" / file).touch()
    found = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: found)
    twelve, thirteen = str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12"), str(tmp_path / "cu13/lib/libnvrtc.so.13")
    by_loader = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    for version, first in (
        (None, [thirteen, twelve]),
        ("12.8", ["libnvrtc.so.12", twelve, thirteen]),
        ("13.0", ["libnvrtc.so.13", thirteen, twelve]),
    ):
        monkeypatch.setattr(nvrtc.torch.version, "cuda", version)
        assert nvrtc.candidates() == [*first, *by_loader]
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    assert nvrtc.candidates() == ["libnvrtc.so.13", *by_loader]


# ---- the cache ---------------------------------------------------------------------------------------------------------------


def test_every_source_architecture_and_version_has_a_file(runs, cache, monkeypatch):
    assert nvrtc.cubin("a", "sm_90") == b"code a" and runs == ["sm_90"]
    assert nvrtc.cubin("a", "sm_90") == b"code a" and runs == ["sm_90"]
    nvrtc.cubin("a", "sm_80")
    nvrtc.cubin("b", "sm_80")
    monkeypatch.setattr(nvrtc, "version", lambda library: "13.1")
    nvrtc.cubin("b", "sm_80")
    assert runs == ["sm_90", "sm_80", "sm_80", "sm_80"] and len(list(cache.iterdir())) == 4


@pytest.mark.parametrize(
    "damage", [lambda text: b"", lambda text: text[:10], lambda text: text[:-1], lambda text: text[:-1] + b"?", bytes.upper]
)
def test_a_damaged_file_is_compiled_anew_and_mended(runs, cache, damage):
    nvrtc.cubin("a", "sm_90")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert nvrtc.cubin("a", "sm_90") == b"code a" and len(runs) == 2
    assert path.read_bytes() == whole and list(cache.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_done_without(runs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [nvrtc.cubin("a", "sm_90") for _ in range(2)] == [b"code a"] * 2 and len(runs) == 2


def test_a_full_disk_leaves_nothing_behind(runs, cache, monkeypatch):
    monkeypatch.setattr(nvrtc.os, "replace", lambda *names: (_ for _ in ()).throw(OSError("no space left on device")))
    assert nvrtc.cubin("a", "sm_90") == b"code a" and list(cache.iterdir()) == []


def test_the_folder_is_the_users_and_there_may_be_none(monkeypatch, runs):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert nvrtc.cache_folder() == pathlib.Path("/somewhere/cache/gigpo_fast")
    monkeypatch.setenv("HOME", "/users/somebody")
    for unusable in ("relative/cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert nvrtc.cache_folder() == pathlib.Path("/users/somebody/.cache/gigpo_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setitem(sys.modules, "pwd", types.SimpleNamespace(getpwuid=lambda user: (_ for _ in ()).throw(KeyError(user))))
    assert nvrtc.cache_folder() is None
    assert nvrtc.cubin("a", "sm_90") == b"code a"


def test_two_processes_at_once(library, tmp_path):
    script = "import sys; from gigpo_fast.anchor import nvrtc; sys.stdout.buffer.write(nvrtc.cubin(sys.argv[1], 'sm_90'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, SMALL]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    codes = [process.communicate(timeout=300)[0] for process in both]
    (path,) = (tmp_path / "gigpo_fast").iterdir()
    assert codes[0] == codes[1] == path.read_bytes()[nvrtc.DIGEST_BYTES :] and codes[0].startswith(b"\x7fELF")
