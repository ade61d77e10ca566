#!/usr/bin/env bash
# One sitting on a GPU machine: scripts/gpu_day.sh OUT [MINUTES] (9 at most, and by default). Everything lands in OUT; read OUT/verdict.md.
#
# Needs no network, no pip and no build: the machine's own python3 with torch, triton, pytest and hypothesis, this checkout, and a GPU.
# What is absent is named and left out. Every step has its own limit and none hides the next; a short budget drops the last ones.
# PYTHON=python3.12 picks another interpreter; BENCH_DEVICE=cpu tries the sitting itself, small, where there is no GPU.
set -u
OUT=${1:?"usage: scripts/gpu_day.sh OUT [MINUTES]"}
MINUTES=${2:-9}
case $MINUTES in [1-9]) ;; *) echo "MINUTES must be 1 to 9, got $MINUTES" >&2; exit 2 ;; esac
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
# The Python below ends itself in time; this is for the case that it cannot.
timeout -k 5 $((MINUTES * 60)) "${PYTHON:-python3}" -m bench.gpu --day --out "$OUT" --minutes "$MINUTES" --device "${BENCH_DEVICE:-cuda}" \
  2>&1 | tee "$OUT/run.log"
code=${PIPESTATUS[0]}
[ -f "$OUT/verdict.md" ] || printf '# Verdict\n\nThe run itself failed with %s; its last lines:\n\n%s\n' "$code" "$(tail -n 20 "$OUT/run.log")" > "$OUT/verdict.md"
printf '\n'; cat "$OUT/verdict.md"
exit "$code"
