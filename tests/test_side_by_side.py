"""Commands that run at once: their lines, their threads, the first failure, the end of their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
START = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
from side_by_side import end_with_parent, side_by_side
"""


def side_by_side(commands: dict[str, str], threads: int) -> str:
    """A program that runs others, which end with it."""
    start = f"{START}end_with_parent()\n"
    words = {name: [sys.executable, "-c", start + code] for name, code in commands.items()}
    return f"{START}sys.exit(side_by_side({words!r}, {threads}))"


def run(commands: dict[str, str], threads: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", side_by_side(commands, threads)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def wait_for(path: Path) -> str:
    """What a process writes into a file that is not there yet."""
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.05)
    return path.read_text()


def test_lines_keep_their_stream_and_tell_whose_they_are() -> None:
    code = "print('out 1\\nout 2'); print(os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    done = run({"a": code, "long": code}, threads=8)
    assert done.returncode == 0
    lines = sorted(done.stdout.splitlines())
    assert lines == ["a    | out 1", "a    | out 2", "long | out 1", "long | out 2"]
    assert sorted(done.stderr.splitlines()) == ["a    | 4", "long | 4"]


def test_one_after_another_with_one_thread() -> None:
    note = "print(os.environ['OMP_NUM_THREADS'], time.monotonic()); time.sleep(0.1); print(time.monotonic())"
    done = run({name: note for name in "abc"}, threads=1)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list("aabbcc")
    moments = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert moments == sorted(moments)
    assert {line.split()[2] for line in done.stdout.splitlines()[::2]} == {"1"}


def test_as_many_at_once_as_there_are_threads(tmp_path: Path) -> None:
    meet = """
folder, me, other = Path({folder!r}), {me!r}, {other!r}
(folder / me).touch()
while not (folder / other).exists():
    time.sleep(0.02)
"""
    both = {"a": ("a", "b"), "b": ("b", "a")}
    commands = {
        name: meet.format(folder=str(tmp_path), me=me, other=other) for name, (me, other) in both.items()
    }
    done = run({**commands, "third": f"(Path({str(tmp_path)!r}) / 'third').touch()"}, threads=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "third").exists()


def test_the_first_failure_ends_all_and_gives_its_exit_code(tmp_path: Path) -> None:
    forever = f"Path({str(tmp_path / 'started')!r}).write_text('1'); time.sleep(600)"
    fails = f"while not Path({str(tmp_path / 'started')!r}).exists(): time.sleep(0.05)\nsys.exit(7)"
    never = f"Path({str(tmp_path / 'never')!r}).write_text('1')"
    done = run({"forever": forever, "fails": fails, "never": never}, threads=2)
    assert done.returncode == 7
    assert not (tmp_path / "never").exists()


def test_a_signal_lets_all_end_in_order(tmp_path: Path) -> None:
    """The parent of a training that a scheduler stops: it waits until the checkpoint is written."""
    polite = f"""
import signal
def stop(*_):
    time.sleep(0.5)
    (Path({str(tmp_path)!r}) / 'saved').touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(Path({str(tmp_path)!r}) / 'started').write_text('1')
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", side_by_side({"polite": polite}, threads=2)])
    wait_for(tmp_path / "started")
    parent.terminate()
    assert parent.wait(60) == 143
    assert (tmp_path / "saved").exists()


def test_none_outlives_a_killed_parent(tmp_path: Path) -> None:
    forever = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", side_by_side({"forever": forever}, threads=2)])
    child = int(wait_for(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < end, "the child lives on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
