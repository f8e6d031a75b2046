"""Several commands at once, which share the processor's threads; their lines are told apart by a prefix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event, Lock, Thread
from types import FrameType
from typing import IO, Any, TextIO

THREADS = "OMP_NUM_THREADS"
PATIENCE_SECONDS = 30.0  # a training that is told to stop writes its checkpoint first


def end_with_parent() -> None:
    """Stop this process as soon as the one that :func:`side_by_side` runs in has gone, be it killed."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock Python wants back at its end
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def side_by_side(commands: Mapping[str, Sequence[str]], threads: int) -> int:
    """Run named commands, as many at once as there are threads, in the order given.

    Small networks leave most of a second thread idle: two processes of one thread do more than one of two.

    Args:
        commands: the words of each; it has to call :func:`end_with_parent`.
        threads: how many all may use together.

    Returns:
        0, or the exit code of the first that failed. That stops the others by SIGTERM, and no more are
        started; so do Ctrl-C and a scheduler's signals.
    """
    workers = max(1, min(threads, len(commands)))
    given_up = Event()
    width = max(map(len, commands), default=0)
    environment = {**os.environ, THREADS: str(max(1, threads // workers))}
    with _signals_raise(), ThreadPoolExecutor(workers) as pool:
        try:
            jobs = [
                pool.submit(_run, words, f"{name:{width}} | ", environment, given_up)
                for name, words in commands.items()
            ]
            for job in as_completed(jobs):
                if code := job.result():
                    return code
        finally:
            given_up.set()
    return 0


def run_apart(words: Sequence[str]) -> int:
    """One command in a process of its own, which ends with this one; returns its exit code."""
    with _signals_raise(), subprocess.Popen(words) as process:
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                _stop(process)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """What would end this process at once raises SystemExit, so that the others are stopped first."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    names = [name for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before: dict[int, Any] = {}
    try:
        for name in names:
            signum = getattr(signal, name)
            before[signum] = signal.signal(signum, stop)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _run(words: Sequence[str], prefix: str, environment: Mapping[str, str], given_up: Event) -> int:
    """One command to its end, or until all are given up; returns its exit code."""
    if given_up.is_set():
        return 0
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdin and process.stdout and process.stderr
        streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        readers = [Thread(target=_relay, args=(source, prefix, to)) for source, to in streams]
        for reader in readers:
            reader.start()
        while process.poll() is None:
            if given_up.wait(0.2):
                _stop(process)
        for reader in readers:
            reader.join()
    return process.returncode


def _stop(process: subprocess.Popen[Any]) -> None:
    """Politely, then not."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


_WRITING = Lock()


def _relay(source: IO[str], prefix: str, to: TextIO) -> None:
    """Whole lines, each after the prefix."""
    for line in source:
        with _WRITING:
            to.write(f"{prefix}{line}")
            to.flush()
