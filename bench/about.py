"""What a run ran on, as JSON: device, versions, which packages are absent, which commit, and what the GEMMs of this torch can do.

python -m bench.about machine.json --device cuda        # exit code 2 where torch sees no CUDA device
"""

import argparse
import importlib.util
import json
import pathlib
import platform
import shutil
import sys

import torch

from bench import records

PACKAGES = ("liger_kernel", "trl", "verl", "transformers", "cut_cross_entropy", "quack", "flash_attn", "unsloth_zoo", "polars", "gymnasium")
TOOLS = ("hypothesis", "pytest_benchmark", "xdist", "matplotlib")
NO_DEVICE = (
    "bench-gpu needs a CUDA device, and torch {version} sees none here; "
    "on a machine with a GPU install a CUDA build of torch, on a CPU run `make bench`"
)


def about(device: torch.device) -> dict:
    """Plain values; what a device alone can say is only there on one."""
    where = records.machine(device)
    found = {
        "date": where.date,
        "commit": where.commit,
        "device": where.device,
        "python": platform.python_version(),
        "torch": where.torch,
        "triton": where.triton,
        "cuda": torch.version.cuda,
        "nvcc": shutil.which("nvcc") is not None,
        "absent": [name for name in (*PACKAGES, *TOOLS) if not _present(name)],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "architecture": f"sm_{properties.major}{properties.minor}",
            "memory GiB": round(properties.total_memory / 2**30),
            "processors": properties.multi_processor_count,
        }
    return found


def _present(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # something stands in for it
        return False


def able(device: torch.device) -> dict:
    """What of the device's abilities the package found: the GEMMs that take bf16 or fp16 and give fp32, the grouping kernels."""
    from gigpo_fast.anchor import cuda
    from gigpo_fast.ops import gemm

    products = {str(dtype)[6:]: gemm._has_out_dtype(device, dtype) for dtype in (torch.bfloat16, torch.float16)}
    return {"GEMM into fp32": products, "grouping kernels": cuda.why_not(device) or "run"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE.format(version=torch.__version__), file=sys.stderr)
        return 2
    device = torch.device(options.device)
    found: dict = {}
    for ask in (about, able) if options.device == "cuda" else (about,):
        try:  # a device is there: what this page cannot say must not end the run
            found |= ask(device)
        except Exception as error:
            found[f"{ask.__name__} failed"] = f"{type(error).__name__}: {error}"
        options.file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
