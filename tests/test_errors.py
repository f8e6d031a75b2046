"""UserError alone is shown as one line; a fault of the program shows its traceback, from every layer."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from errors import ABSENT, RankZeroError, UserError, of_system
from main import REPORT_US, _run_and_report, main
from tasks import MODES


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("lr", 0.0, "out of range", "give > 0"), "lr=0.0: out of range; give > 0"),
        (UserError("name", "x y", "has a blank"), "name=x y: has a blank"),
        (UserError("lr", ABSENT, "unknown key", "use optim.lr"), "lr: unknown key; use optim.lr"),
        (UserError("", ABSENT, "two words", "use one"), "two words; use one"),
        (UserError("data.x", None, "cannot be null"), "data.x=None: cannot be null"),
    ],
)  # fmt: skip
def test_the_shape_of_the_line(error: UserError, text: str) -> None:
    assert str(error) == text
    copy = pickle.loads(pickle.dumps(error))  # data loader workers and launchers send it
    assert str(copy) == text and (copy.key, copy.hint) == (error.key, error.hint)


def test_the_first_process_reports_for_all() -> None:
    assert isinstance(RankZeroError("", ABSENT, "x"), UserError)


# A function of each layer that mode=plan calls.
LAYERS = {
    "config": "config.run._validate_devices",
    "tasks": "MODES",
    "trainer_base": "trainer_base.TrainerBase.__init__",
    "models": "models.dit.DiT.__init__",
    "data": "data.tokenizers.get_tokenizer",
    "diffusion": "diffusion.noise.LogLinear.__init__",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_plain_value_error_of_ours_shows_its_traceback(
    layer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        int("a fault of ours")

    monkeypatch.chdir(tmp_path)
    if layer == "tasks":
        monkeypatch.setitem(MODES, "plan", broken)
    else:
        monkeypatch.setattr(LAYERS[layer], broken)
    words = ["mode=plan", "algo=mdlm", "model=tiny", "data=synthetic", "trainer.accelerator=cpu"]
    monkeypatch.setattr("sys.argv", ["main.py", *words])
    assert _run_and_report() == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "a fault of ours" in told
    assert told.splitlines()[-1] == REPORT_US


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (errno.ENOSPC, "a/b", "a/b: No space left on device; make room, then give the same command again"),
        (errno.ENOSPC, None, "No space left on device; make room, then give the same command again"),
        (errno.EDQUOT, "a/b", "a/b: Disk quota exceeded; make room, then give the same command again"),
        (errno.EACCES, "a/b", "a/b: Permission denied; choose another place, or change its permissions"),
        (errno.EROFS, "a/b", "a/b: Read-only file system; choose another place"),
        (errno.EISDIR, "a", "a: Is a directory; a folder is where a file is to be: give another path"),
        (errno.ENOTDIR, "a/b", "a/b: Not a directory; a part of this path is a file: give another path"),
        (errno.ENOENT, "a/b", "a/b: No such file or directory; nothing is there: correct the path"),
        (errno.EIO, "a/b", "a/b: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_a_fitting_hint(
    number: int, name: str | None, line: str
) -> None:
    assert str(of_system(OSError(number, os.strerror(number), name))) == line


def test_errors_of_the_system_in_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = iter([errno.ENOSPC, errno.EIO])

    def fails(cfg: object) -> None:
        number = next(numbers)
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(MODES, "train", fails)
    assert main([]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "error: No space left on device; make room, then give the same command again"
    with pytest.raises(OSError, match="Input/output error"):  # which says nothing to the user
        main([])
    error = OSError("3 requested and 2 written")  # numpy's
    assert of_system(error) is None
    error.filename = "x.npy"
    assert str(of_system(error)) == "x.npy: 3 requested and 2 written"
