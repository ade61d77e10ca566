#!/bin/sh
# Looks before `make` leaps: Python, venv, disk and compiler, each with the fix. Usage: preflight.sh PYTHON [FOLDER]
# Anything that would stop the install exits 1; a missing compiler only means a slower path, so it is a note.
set -eu

python=${1:?usage: preflight.sh PYTHON [FOLDER]}
folder=${2:-.}
cpu_gib=4  # measured: .venv with torch for CPU and what the tests need takes 2.2 GiB; pip unpacks beside it
cuda_gib=8 # measured: torch with CUDA and the toolkit's libraries take 4.6 GiB in place of 0.7

stop() { echo "preflight: $1" >&2; echo "     fix: $2" >&2; exit 1; }
note() { echo "preflight: $1"; echo "    note: $2"; }

command -v "$python" >/dev/null 2>&1 ||
    stop "no Python found as '$python'" "install Python 3.10 or newer, or name one: make test PY=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    stop "$("$python" --version 2>&1) is too old: 3.10 or newer is needed" "install a newer Python, or name one: make test PY=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    stop "'$python' has no venv module (Debian and Ubuntu package it apart)" "apt install python3-venv, or name another Python: make test PY=..."

cuda=no
if [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null 2>&1; then cuda=yes; fi

# On Linux pip's default index serves torch with CUDA, whether there is a GPU or not.
need_gib=$cpu_gib
if [ -z "${TORCH_INDEX:-}" ] && [ "$(uname -s)" = Linux ]; then need_gib=$cuda_gib; fi
free_gib=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1048576) }')
if [ "$free_gib" -lt "$need_gib" ]; then
    fix="free some space, or clone the repository on a larger disk"
    if [ "$need_gib" = "$cuda_gib" ]; then
        fix="$fix; torch for CPU alone needs $cpu_gib: give the address of PyTorch's CPU wheel index: make test TORCH_INDEX=..."
    fi
    stop "$free_gib GiB free here, $need_gib GiB needed for .venv" "$fix"
fi

if [ "$cuda" = no ] && [ "$need_gib" = "$cuda_gib" ]; then
    note "no NVIDIA GPU is visible" "pip's default index may serve a CUDA build of torch (5 GiB on disk; $free_gib GiB are free). It works on a CPU too;
          for the small one (1 GiB) give the address of PyTorch's CPU wheel index: make test TORCH_INDEX=..."
fi

compiler=${CXX:-c++}
if ! command -v "${compiler%% *}" >/dev/null 2>&1; then
    note "no C++ compiler found as '$compiler'" "pure torch will be used instead of the C++ kernels: right, but slower, and their tests are skipped.
          To get one: apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS); then: make clean"
elif ! "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
    note "this Python's headers (Python.h) are missing" "pure torch will be used instead of the C++ kernels.
          To get them: apt install python3-dev (Debian, Ubuntu), dnf install python3-devel (Fedora); then: make clean"
fi

echo "preflight: $("$python" --version 2>&1), $free_gib GiB free: ok"
