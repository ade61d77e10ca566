"""Memory that runs out inside of native code is MemoryError with what to do, and the next call, with less, is right."""

import os
import subprocess
import sys

import pytest
import torch

from gigpo_fast import backend, native_memory

CODE = """
import resource, sys, torch
from gigpo_fast import anchor, logprob
from gigpo_fast.segments import segment_moments, sort_segments
torch.set_num_threads(1)
size = 1_000_000
values, labels = torch.rand(size, dtype=torch.float64), torch.arange(size) // 20
texts = [str(number) for number in range(size)]
packed = torch.arange(8 * size, dtype=torch.int32).view(size, 8)
order, segment = sort_segments([labels], [])
call = {
    "strings": lambda n: anchor.group_states(texts[:n]),
    "packed": lambda n: anchor.group_states(packed[:n]),
    "moments": lambda n: segment_moments(values[:n], values[:n] > 2, order[:n], segment[:n], 1),
    "sort": lambda n: sort_segments([labels[:n]], []),
}[sys.argv[1]]
call(1000)
found = []
for extra in range(0, 160, 2):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (extra << 20), resource.RLIM_INFINITY))
    try:
        call(size)
        found.append("ran")
    except (MemoryError, RuntimeError) as error:
        found.append(f"{type(error).__name__}: {error}"[:120])
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if found[-1] == "ran":
        break
call(size)  # without a limit it is right again
print("\\n".join(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space are Linux's")
@pytest.mark.skipif(backend.why_not_native(torch.device("cpu")) is not None, reason="the C++ library was not built")
@pytest.mark.parametrize("call", ["strings", "packed", "moments", "sort"])
def test_native_code_that_runs_out_of_memory(call):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", CODE, call], capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    native = [line for line in lines if "memory ran out in native code; pass fewer rows" in line]
    assert native and all(line.startswith("MemoryError: ") for line in native)
    # Torch's own allocations in Python code speak for themselves; nothing else may come.
    assert all("DefaultCPUAllocator" in line for line in set(lines) - set(native) - {"ran"}), lines


def test_other_errors_pass_through():
    def refuse():
        raise RuntimeError("order and segment must be what segments_sort returned")

    with pytest.raises(RuntimeError, match="^order and segment"):
        native_memory.call("segments", refuse)
