"""Random states that are hard to tell apart, through the CPU's tables and the CUDA kernels, compared with a map (anchor_fuzz.cpp).

Plainly, and under the sanitizers for memory, undefined behaviour and data races: then every CUDA thread is a thread of the system.
"""

import subprocess

import pytest

from tests.anchor_helpers import PORTABLE, compile_cpp

SMALL = "-DANCHOR_SMALL"  # bounds so small that every way out of the tables is taken
OS_THREADS = "-DANCHOR_OS_THREADS"
SANITIZERS = {
    "addresses and undefined behaviour": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "races": ["-fsanitize=thread"],
}


def fuzz(folder, seconds: float, *options: str) -> int:
    """Compile the program, let it run, return how many cases it tried."""
    program = compile_cpp(folder, "anchor_fuzz", "-O1", "-g", *options)
    done = subprocess.run([program, "20251", str(seconds)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return int(done.stdout.split()[0])


@pytest.mark.parametrize("bounds", [[SMALL], [], [SMALL, PORTABLE]], ids=["small bounds", "real bounds", "small bounds, without SSE2"])
def test_random_states(tmp_path, bounds):
    assert fuzz(tmp_path, 1.5, *bounds) > 10


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [[SMALL], []], ids=["small bounds", "real bounds"])
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_random_states_under_a_sanitizer(tmp_path, sanitizer, bounds):
    _needs_runtime(tmp_path, SANITIZERS[sanitizer])
    assert fuzz(tmp_path, 5, OS_THREADS, *bounds, *SANITIZERS[sanitizer]) > 1


@pytest.mark.slow
def test_the_race_detector_sees_a_race(tmp_path):
    """That the test above tests something: with a plain store in place of the atomic minimum it fails."""
    _needs_runtime(tmp_path, SANITIZERS["races"])
    program = compile_cpp(tmp_path, "anchor_fuzz", "-O1", "-g", OS_THREADS, "-DANCHOR_PLAIN_MINIMUM", *SANITIZERS["races"])
    done = subprocess.run([program, "20251", "5"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "data race" in done.stderr


@pytest.mark.slow
def test_the_address_sanitizer_sees_a_word_past_the_end(tmp_path):
    """The same for reads outside the states' memory: kernels that are told of whole words at its end fail."""
    options = SANITIZERS["addresses and undefined behaviour"]
    _needs_runtime(tmp_path, options)
    program = compile_cpp(tmp_path, "anchor_fuzz", "-O1", "-g", OS_THREADS, SMALL, "-DANCHOR_WHOLE_WORDS", *options)
    done = subprocess.run([program, "20251", "5"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "load16" in done.stderr


def _needs_runtime(folder, options: list[str]) -> None:
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    built = subprocess.run(["c++", *options, probe, "-o", folder / "probe"], capture_output=True, text=True)
    ran = subprocess.run([folder / "probe"], capture_output=True, text=True) if built.returncode == 0 else built
    if ran.returncode != 0:
        pytest.skip(f"{options[0]} does not run here (apt-get install g++ brings it): {ran.stderr.strip().splitlines()[-1:]}")
