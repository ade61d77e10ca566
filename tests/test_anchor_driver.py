"""The way from compiled kernels to a launch, with a driver that runs them on the CPU and writes down what it is told."""

import contextlib
import ctypes
import threading
import types

import pytest
import torch

from gigpo_fast import backend
from gigpo_fast.anchor import cuda, driver, nvrtc, paths
from tests.anchor_helpers import CPU, KEY, assert_groups, build_kernels, compile_cpp, kernels_of, packed

CODE = b"\x7fELF and so on"
STATES = [bytes(range(length)) for length in (0, 5, 40, 250)] * 2
IDS = [0, 1, 2, 3] * 2


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = compile_cpp(tmp_path_factory.mktemp("driver"), "anchor_driver_stub", "-O1", "-fPIC", "-shared")
    library = ctypes.CDLL(str(path))
    library.stub_told.restype = ctypes.c_char_p
    return library


@pytest.fixture
def stub(library, monkeypatch):
    monkeypatch.setattr(driver, "stream_of", lambda index: 4096 + index)
    library.stub_reset(b"", 0)
    yield library
    assert library.stub_depth() == 0, "a context was left current"


def kernels(stub) -> cuda.Kernels:
    module = driver.Module(CODE, 3, stub)
    return cuda.from_functions(*map(module.kernel, cuda.KERNELS))


def group(found: cuda.Kernels, labels=None):
    return cuda.group_with(found, packed(STATES), labels, bytes_decide=True, key=KEY, blocks=5)


def test_launches_by_the_driver_give_the_right_ids(stub):
    assert group(kernels(stub)).ids.tolist() == IDS
    assert group(kernels(stub), torch.arange(8)).ids.tolist() == list(range(8))
    cuda.try_out(kernels(stub), CPU)


def test_grid_block_stream_and_device(stub):
    group(kernels(stub))
    first, *launches = stub.stub_told().decode().splitlines()
    assert first == "context of 103"
    assert [line.split()[0] for line in launches] == list(cuda.KERNELS[:4])
    assert all(" grid 5 1 1 block 256 1 1 shared 0 stream 0x1003 extra 0 args " in line for line in launches), launches


def test_arguments_are_addresses_and_an_empty_one_is_null(stub):
    module = driver.Module(CODE, 0, stub)
    states = torch.zeros(8, dtype=torch.int64)  # no rows: nothing is done
    given = [states, *(torch.zeros(4, dtype=torch.int64) for _ in range(9))]
    given[4] = torch.zeros(7, dtype=torch.int64)[5:5]  # without elements, but with an address
    stub.stub_reset(b"", 0)
    module.kernel("anchor_enter")(grid=(1, 1, 1), block=(256, 1, 1), args=given)
    got = list(map(int, stub.stub_told().split(b" args ")[1].split()))
    assert got == [tensor.data_ptr() if tensor.numel() else 0 for tensor in given] and got[4] == 0 and all(got[:4])


def test_integers_are_64_bit():
    value = driver._value(-(2**62))
    assert ctypes.sizeof(value) == 8 and value.value == -(2**62)


def test_a_thread_that_never_touched_the_device_has_its_context(stub):
    found, ids = kernels(stub), []
    thread = threading.Thread(target=lambda: ids.extend(group(found).ids.tolist()))
    thread.start()
    thread.join()
    assert ids == IDS


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cuDevicePrimaryCtxRetain", 2, "cuDevicePrimaryCtxRetain: error 2"),
        ("cuModuleLoadData", 209, "cuModuleLoadData: no kernel image is available for execution on the device"),
        ("cuModuleGetFunction", 500, "cuModuleGetFunction: error 500"),
        ("cuLaunchKernel", 209, "cuLaunchKernel: no kernel image is available for execution on the device"),
    ],
)
def test_errors_of_the_driver_are_named(stub, name, error, message):
    stub.stub_reset(name.encode(), error)
    with pytest.raises(RuntimeError, match=message):
        group(kernels(stub))
    stub.stub_reset(b"", 0)
    assert group(kernels(stub)).ids.tolist() == IDS


def test_what_is_no_machine_code_or_no_kernel_is_refused(stub):
    with pytest.raises(RuntimeError, match="cuModuleLoadData: error 200"):
        driver.Module(b"rubbish", 0, stub)
    with pytest.raises(RuntimeError, match="cuModuleGetFunction: error 500"):
        driver.Module(CODE, 0, stub).kernel("another")


def test_a_machine_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: no such file")))
    with pytest.raises(RuntimeError, match="the CUDA driver's library was not found"):
        driver.load()


# ---- which kernels a device gets ---------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """cuda.py as if this machine's CPU were its CUDA device 0."""
    monkeypatch.setattr(cuda.torch.cuda, "device", lambda index: contextlib.nullcontext())
    try_out = cuda.try_out
    monkeypatch.setattr(cuda, "try_out", lambda kernels, device: try_out(kernels, CPU))
    for cached in (cuda._kernels, cuda._why_not_on):
        cached.cache_clear()
    yield torch.device("cuda", 0)
    for cached in (cuda._kernels, cuda._why_not_on):
        cached.cache_clear()


@pytest.fixture(scope="module")
def working(tmp_path_factory):
    return kernels_of(build_kernels(tmp_path_factory.mktemp("kernels")))


def refused(*arguments):
    raise RuntimeError("a kernel did not start: no kernel image is available\nand more")


def test_a_library_that_does_not_know_the_device_gives_way_to_compiled_kernels(device, working, monkeypatch):
    """It loads, as one built for newer architectures does, and only its launches fail."""
    monkeypatch.setattr(cuda, "built", lambda index: cuda.Kernels(refused, refused))
    monkeypatch.setattr(cuda, "compiled", lambda index: working)
    assert cuda.why_not(device) is None and cuda._kernels(0) is working


def test_wrong_answers_fall_back_to_the_torch_path_with_the_reason(device, working, monkeypatch):
    def enter(*arguments):
        working.enter(*arguments)
        arguments[8].fill_(int(arguments[8][0]))  # slot_of_row: all rows in one group

    monkeypatch.setattr(cuda, "built", lambda index: cuda.Kernels(refused, refused))
    monkeypatch.setattr(cuda, "compiled", lambda index: cuda.Kernels(enter, working.rehash))
    monkeypatch.setattr(backend, "choose", lambda device: "triton")
    name, reason = paths.path(device)
    first, second = reason.split("; ")
    assert name == "torch" and first == "the library built ahead of time: a kernel did not start: no kernel image is available"
    assert second == "the source compiled by NVRTC: the kernels' answer for states whose ids are known is wrong"


def test_rehashed_rows_are_tried_out_too(device, working, monkeypatch):
    monkeypatch.setattr(cuda, "built", lambda index: None)
    monkeypatch.setattr(cuda, "compiled", lambda index: cuda.Kernels(working.enter, refused))
    assert cuda.why_not(device) == "the source compiled by NVRTC: a kernel did not start: no kernel image is available"


def test_kernels_are_compiled_once_for_the_architecture_of_the_device(device, stub, monkeypatch):
    asked = []
    monkeypatch.setattr(cuda.torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(nvrtc, "cubin", lambda source, architecture: asked.append((source, architecture)) or CODE)
    monkeypatch.setattr(driver, "load", lambda: stub)
    monkeypatch.setattr(cuda, "pathlib", types.SimpleNamespace(Path=lambda path: _Nothing()))  # no library was built
    monkeypatch.setattr(cuda, "source", lambda: "the source")
    assert cuda.why_not(device) is None
    assert asked == [("the source", "sm_90")]
    assert_groups(group(cuda._kernels(0)), [torch.tensor(IDS), torch.arange(4), torch.full((4,), 2)])
    assert len(asked) == 1


class _Nothing:
    parent = property(lambda self: self)

    def resolve(self):
        return self

    def glob(self, pattern):
        return []
