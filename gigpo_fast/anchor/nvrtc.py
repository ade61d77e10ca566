"""CUDA source to machine code with NVRTC: one compilation of a whole text, by ctypes, without a CUDA toolkit; the result is kept on disk.

NVRTC is one library. CUDA builds of torch bring it as a wheel, from whose folder it is loaded here; nothing else of CUDA is needed.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import pathlib
import re
import tempfile

import torch

DIGEST_BYTES = hashlib.sha256().digest_size


def cubin(source: str, architecture: str) -> bytes:
    """Machine code of all kernels of `source` for `architecture` ("sm_90"), from disk if it was compiled there before.

    Raises RuntimeError where NVRTC is missing or refuses the source. A cache that cannot be read or written is done without.
    """
    library = load()
    name = hashlib.sha256("\0".join([source, architecture, version(library)]).encode()).hexdigest()
    folder = cache_folder()
    path = None if folder is None else folder / f"{name}.cubin"
    found = None if path is None else _read(path)
    if found is None:
        found = compile_source(library, source, architecture)
        if path is not None:
            _write(path, found)
    return found


def compile_source(library: ctypes.CDLL, source: str, architecture: str) -> bytes:
    """One run of the compiler."""
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"gigpo_fast.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        result = library.nvrtcCompileProgram(program, len(options), options)
        if result:
            log = _output(library, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            _check(library, result, f" for {architecture}: " + " ".join(log.rstrip(b"\0").decode(errors="replace").split())[:300])
        return _output(library, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def load() -> ctypes.CDLL:
    """The library, of torch's own CUDA version if there are several."""
    for name in candidates():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    wheel = "nvidia-cuda-nvrtc-cu12" if _major() == "12" else "nvidia-cuda-nvrtc"
    raise RuntimeError(f"NVRTC, which compiles the CUDA kernels, was not found (pip install {wheel})")


def candidates() -> list[str]:
    """What to load, best first: what torch has loaded, the wheel's folder of any CUDA version, torch's own libraries, the loader's path."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [pathlib.Path(top) for top in (spec.submodule_search_locations or [])] if spec is not None else []
    folders = [folder for top in wheels for folder in sorted(top.glob("*/lib"))] + [pathlib.Path(torch.__file__).parent / "lib"]
    files = [str(path) for folder in folders for path in sorted(folder.glob("libnvrtc*.so*"))]
    files = [
        path for path in files if re.search(r"/libnvrtc(-[0-9a-f]{8})?\.so[.\d]*$", path)
    ]  # neither builtins nor the other build of it
    named = [f"libnvrtc.so.{_major()}"] if _major() else []
    files.sort(key=lambda path: not (_major() and f".so.{_major()}" in path))
    return [*named, *files, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]


def version(library: ctypes.CDLL) -> str:
    """For example "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def cache_folder() -> pathlib.Path | None:
    """Where machine code is kept; None where the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache") / "gigpo_fast"
    except RuntimeError:
        return None


def _read(path: pathlib.Path) -> bytes | None:
    """What `_write` wrote, whole and unchanged, else None."""
    with contextlib.suppress(OSError):
        digest, code = (content := path.read_bytes())[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return code if code and hashlib.sha256(code).digest() == digest else None
    return None


def _write(path: pathlib.Path, code: bytes) -> None:
    """Under another name first, so that a reader, and another writer, see a whole file or none."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def _output(library: ctypes.CDLL, size_of, write, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(library, size_of(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(library, write(program, text))
    return text.raw


def _check(library: ctypes.CDLL, result: int, where: str = "") -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(result).decode()}{where}")


def _major() -> str:
    return (torch.version.cuda or "").partition(".")[0]
