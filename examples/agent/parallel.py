"""Many training runs side by side: one process a core, one thread a process.

A model this small gains nothing from more threads, and a run's numbers do not depend on how many run beside it.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

import torch
from tqdm import tqdm

from .train import Settings, train

_ticks = None  # in a worker process: where it reports that it finished an update


def train_all(settings: list[Settings], *, processes: int) -> Iterator[dict]:
    """The results of all runs, each as it is finished, behind one progress bar that counts updates."""
    total = sum(s.updates for s in settings)
    hidden = True if os.environ.get("CI") else None  # None: shown on a terminal only
    with tqdm(total=total, unit="update", desc="training", disable=hidden, smoothing=0.05) as bar:
        if processes == 1:
            with _one_thread():
                for s in settings:
                    yield train(s, on_update=bar.update)
        else:
            yield from _in_processes(settings, processes, bar)


def say(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line)


def _in_processes(settings: list[Settings], processes: int, bar: tqdm) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an undefined state
    ticks = context.Queue()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(ticks,)) as pool:
        try:
            with _deaf_to_interrupts():
                running = {pool.submit(_run, s) for s in settings}
            while running:
                done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        bar.update(ticks.get_nowait())
                for future in done:
                    yield future.result()
        except BaseException:  # Ctrl-C too: nobody waits for runs to end
            with _deaf_to_interrupts():
                for worker in multiprocessing.active_children():
                    worker.terminate()
                pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _deaf_to_interrupts():
    """Processes started here never hear Ctrl-C, which a terminal sends to all: this process ends them. It hears it at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(ticks) -> None:
    global _ticks
    _ticks = ticks
    torch.set_num_threads(1)


def _run(settings: Settings) -> dict:
    return train(settings, on_update=lambda: _ticks.put(1))


@contextlib.contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
