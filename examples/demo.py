"""The demo: from recorded agent rollouts to a trained policy.

    python examples/demo.py            one to two minutes on two free cores; pictures and numbers in demo_out/
    python examples/demo.py --quick    half a minute, too short to learn much
    python examples/demo.py --slippery --map 8x8 --algorithm gigpo --seeds 3

1. What anchor grouping finds in rollouts that were recorded in TextWorld, ScienceWorld and FrozenLake.
2. A small language model learns to play FrozenLake through text, with GRPO and with GiGPO.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import signal
import sys
import time

if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import gymnasium
import torch
import transformers
from agent import parallel, plots, report, rollouts, summary
from agent.frozen_lake import SHORTEST
from agent.train import ALGORITHMS, Settings

INTERRUPTED = 130  # what a shell calls a program that Ctrl-C ended


def main() -> None:
    options = parse()
    sys.stdout.reconfigure(line_buffering=True)  # a log shows each line as it comes
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = look_at_rollouts(options.out)
    runs, settings = train_policies(options)
    write_results(options.out, found, runs, settings, time.perf_counter() - start)


def look_at_rollouts(out: pathlib.Path) -> list[report.Findings]:
    """Print what grouping found; draw the credit of one TextWorld trajectory."""
    print("1. Recorded rollouts: steps of one task taken from the same observation form an anchor group\n")
    found = []
    for environment in rollouts.ENVIRONMENTS:
        recorded = rollouts.read(environment)
        findings, groups, levels = report.analyse(recorded)
        found.append(findings)
        if environment == "textworld":
            chosen = report.instructive_trajectory(recorded, levels)
            plots.draw_credit(out / "credit.png", recorded, chosen, groups, levels)
    print(report.table(found))
    print(f"\n   {out / 'credit.png'}: one trajectory's credit (the one where the two methods most often have opposite signs)\n")
    return found


def train_policies(options: argparse.Namespace) -> tuple[list[dict], list[Settings]]:
    """Train every algorithm on every seed."""
    algorithms = ALGORITHMS if options.algorithm == "both" else (options.algorithm,)
    settings = [
        Settings(
            algorithm=algorithm,
            seed=seed,
            updates=options.updates,
            groups=options.episodes // options.group_size,
            group_size=options.group_size,
            map_name=options.map,
            slippery=options.slippery,
            record=None if options.record is None else str(options.record),
        )
        for seed in range(options.seeds)
        for algorithm in algorithms
    ]
    processes = min(options.processes, len(settings))
    print(
        f"2. FrozenLake {options.map}{', slippery' if options.slippery else ''}, played through text by a Qwen2 of "
        f"64 hidden units, from scratch\n   {len(settings)} runs of {options.updates} updates, each of {options.episodes} episodes "
        f"in groups of {options.group_size}; {processes} at a time\n"
    )
    runs = []
    for run in parallel.train_all(settings, processes=processes):
        runs.append(run)
        end = summary.last_quarter(run["success"])
        parallel.say(f"   {run['algorithm']:>5} seed {run['seed']}: {end:.3f} success in the last quarter, {run['seconds']:.0f} s")
    return sorted(runs, key=lambda run: (ALGORITHMS.index(run["algorithm"]), run["seed"])), settings


def write_results(out: pathlib.Path, found: list[report.Findings], runs: list[dict], settings: list[Settings], seconds: float) -> None:
    """Print the outcome, draw the curves, save every number."""
    first = settings[0]
    episodes = first.groups * first.group_size
    figures = summary.summarise(runs, episodes)
    print("\n" + summary.table(figures))
    if len(figures) == 2:
        print("\n" + paired(figures))
    title = f"FrozenLake {first.map_name}{', slippery' if first.slippery else ''}, {episodes} episodes an update"
    shortest = None if first.slippery else SHORTEST[first.map_name]
    plots.draw_curves(out / "learning_curves.png", runs, episodes, title, shortest=shortest)
    results = {
        "settings": {k: v for k, v in dataclasses.asdict(first).items() if k not in ("algorithm", "seed")},
        "summary": figures,
        "runs": runs,
        "rollouts": [dataclasses.asdict(f) | {"sign_differs": f.sign_differs} for f in found],
        "seconds": seconds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n   {out / 'learning_curves.png'}, {out / 'results.json'}\n   {seconds:.0f} s in all")


def paired(figures: dict[str, dict]) -> str:
    """In how many seeds GiGPO was ahead: both started from the same weights and random streams."""
    sentences = []
    for name in ("success_last_quarter", "success_whole_training"):
        grpo, gigpo = (figures[algorithm][name] for algorithm in ALGORITHMS)
        ahead = sum(b > a for a, b in zip(grpo["seeds"], gigpo["seeds"], strict=True))
        difference = gigpo["mean"] - grpo["mean"]
        sentences.append(f"   {name.replace('_', ' ')}: GiGPO - GRPO = {difference:+.3f}, ahead in {ahead} of {len(grpo['seeds'])} seeds")
    return "\n".join(sentences)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=(*ALGORITHMS, "both"), default="both")
    parser.add_argument("--seeds", type=int, default=5, help="runs per algorithm (default 5)")
    parser.add_argument("--updates", type=int, default=150, help="optimiser steps a run (default 150)")
    parser.add_argument("--episodes", type=int, default=32, help="episodes an update (default 32)")
    parser.add_argument("--group-size", type=int, default=8, help="episodes that are compared with each other (default 8)")
    parser.add_argument("--map", choices=("4x4", "8x8"), default="4x4")
    parser.add_argument("--slippery", action="store_true", help="the ice carries the player sideways two times in three")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="runs side by side (default: the cores)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo_out"), metavar="FOLDER")
    parser.add_argument("--record", type=pathlib.Path, metavar="FOLDER", help="write every step of each tenth update, with its credit")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 updates: shows that everything works")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.updates = min(options.seeds, 2), min(options.updates, 20)
    for name in ("seeds", "updates", "group_size", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.episodes < 1 or options.episodes % options.group_size:
        parser.error(f"--episodes must be a multiple of --group-size ({options.group_size}), got {options.episodes}")
    return options


def usable_cores() -> int:
    """Cores this process may use, which in a container is often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interruptible() -> int:
    """main(), and its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    status = interruptible()
    if status:
        print("\nstopped", flush=True)
        os._exit(status)  # Python would tidy up for seconds with these packages loaded; nothing is left to write or to end
