"""Machine code on a device through CUDA's driver, by ctypes: load it, find its kernels, launch them on torch's current stream."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class Module:
    """The kernels of one piece of machine code on one device, in the context that torch uses there."""

    def __init__(self, code: bytes, index: int, library: ctypes.CDLL | None = None) -> None:
        self.library, self.index = library or load(), index
        self._context, self._module, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        with self._current():
            self._call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(code))

    def kernel(self, name: str) -> Callable[..., None]:
        """A function that launches the kernel `name`: launch(grid=(x, y, z), block=(x, y, z), args=[...]).

        args are tensors on this device, of which the kernel gets the address, null for one without elements, and ints, which it gets as
        int64.
        """
        function = ctypes.c_void_p()
        with self._current():
            self._call("cuModuleGetFunction", ctypes.byref(function), self._module, ctypes.c_char_p(name.encode()))

        def launch(*, grid: Sequence[int], block: Sequence[int], args: Sequence[Tensor | int]) -> None:
            values = [_value(argument) for argument in args]
            places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            sizes = [ctypes.c_uint(size) for size in (*grid, *block)]
            stream = ctypes.c_void_p(stream_of(self.index))
            with self._current():
                self._call("cuLaunchKernel", function, *sizes, ctypes.c_uint(0), stream, places, None)

        return launch

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """In this thread the device's context is the current one; a new thread has none before torch's first call there."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self.library, name)(*arguments)
        if result:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else f'error {result}'}")


def load() -> ctypes.CDLL:
    """The driver's library, which every machine with a working device has."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"the CUDA driver's library was not found ({error})") from None


def stream_of(index: int) -> int:
    """torch's current stream on a device."""
    return torch.cuda.current_stream(index).cuda_stream


def _value(argument: Tensor | int) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr() if argument.numel() else None)
    return ctypes.c_int64(argument)
