"""Decides which native libraries can be built here; everything else is in pyproject.toml.

GIGPO_EXT=auto (default) builds what it can and says in one line what it left out; off builds nothing;
cpu and cuda build that library or fail. The decision falls before setup(), so that a wheel without a
binary is never tagged as if it had one.
"""

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import setuptools

# pip checks this only where it makes an environment of its own for the build.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(f"setup.py: setuptools {setuptools.__version__} is too old, 77 or newer is needed: pip install 'setuptools>=77'")

TORCH_TARGET = "0x020b000000000000"  # torch 2.11: one binary serves that version and every later one
PYTHON_TARGET = "0x030A0000"  # CPython 3.10, as the abi3 tag below
DEFINES = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-DPy_LIMITED_API={PYTHON_TARGET}"]
# No -march=native: a wheel may travel. The sources choose wider instructions at run time.
CXX_FLAGS = ["-O3", "-std=c++17", "-g0", *DEFINES]
LINK_FLAGS = ["-s"] if sys.platform == "linux" else []
CUDA_ARCHITECTURES = [f"-gencode=arch=compute_{cc},code=sm_{cc}" for cc in (80, 90, 100)] + ["-gencode=arch=compute_100,code=compute_100"]
HEADERS = sorted(glob.glob("csrc/*.h"))


def why_no_cpu() -> str | None:
    """None if the C++ library can be built here, else the reason."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not visible to this build (add --no-build-isolation)"
    command = os.environ.get("CXX", "c++")
    compiler = shutil.which(command.split()[0]) if command.strip() else None
    if compiler is None:
        return f"no C++ compiler ({command!r} is not on PATH)"
    include = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        probe = os.path.join(folder, "probe.cpp")
        with open(probe, "w") as file:
            file.write("#include <Python.h>\n#include <optional>\nstd::optional<int> answer;\n")
        ran = subprocess.run([*command.split(), "-std=c++17", "-fsyntax-only", f"-I{include}", probe], capture_output=True, text=True)
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip().splitlines()
        return f"{command} cannot compile C++17 with Python.h from {include}: {said[0] if said else 'no message'}"
    return None


def why_no_cuda() -> str | None:
    """None if the CUDA library can be built here, else the reason. A visible GPU is not asked for: build machines often have none."""
    reason = why_no_cpu()
    if reason is not None:
        return reason
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return None if CUDA_HOME else "the CUDA toolkit (nvcc) was not found; set CUDA_HOME"


def extensions(wanted: str) -> list:
    """The native libraries to build for GIGPO_EXT=`wanted`."""
    if wanted not in ("auto", "off", "cpu", "cuda"):
        raise SystemExit(f"setup.py: GIGPO_EXT must be auto, off, cpu or cuda, got {wanted!r}")
    if wanted == "off":
        return []
    built = []
    for name, reason, make in (("cpu", why_no_cpu(), cpu_extension), ("cuda", why_no_cuda(), cuda_extension)):
        needed = wanted == "cuda" or wanted == name
        if reason is None and (needed or wanted == "auto"):
            built += make()
        elif reason is not None and needed:
            raise SystemExit(f"setup.py: GIGPO_EXT={wanted} was asked for, but {reason}")
        elif reason is not None and wanted == "auto":
            print(f"gigpo_fast: building without the {name} library: {reason}", file=sys.stderr)
    return built


def cpu_extension() -> list:
    from torch.utils.cpp_extension import CppExtension

    sources = sorted(glob.glob("csrc/*_cpu.cpp"))
    return [_extension(CppExtension, "gigpo_fast._C", sources, {"cxx": CXX_FLAGS})] if sources else []


def cuda_extension() -> list:
    from torch.utils.cpp_extension import CUDAExtension

    sources = sorted(glob.glob("csrc/*_cuda.cu"))
    flags = {"cxx": CXX_FLAGS, "nvcc": ["-O3", "-std=c++17", *DEFINES, "-DUSE_CUDA", *CUDA_ARCHITECTURES]}
    return [_extension(CUDAExtension, "gigpo_fast._cuda", sources, flags)] if sources else []


def _extension(kind, name: str, sources: list, flags: dict):
    return kind(name, sources, depends=HEADERS, py_limited_api=True, extra_compile_args=flags, extra_link_args=LINK_FLAGS)


os.chdir(os.path.dirname(os.path.abspath(__file__)))
modules = extensions(os.environ.get("GIGPO_EXT", "auto"))
if modules:
    from torch.utils.cpp_extension import BuildExtension

    # abi3: one wheel for every CPython from 3.10 on. Nothing imports the library as a module; torch loads it.
    setuptools.setup(ext_modules=modules, cmdclass={"build_ext": BuildExtension}, options={"bdist_wheel": {"py_limited_api": "cp310"}})
else:
    setuptools.setup()
