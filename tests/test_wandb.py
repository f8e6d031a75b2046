"""Weights & Biases: where its log goes, with and without a login."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from config.cli import compose_config
from tasks.train import _wandb


@pytest.mark.parametrize(
    ("words", "login", "environment", "offline", "mode"),
    [
        ([], None, None, True, "offline"),
        ([], "key", None, False, None),
        (["wandb.offline=True"], "key", None, True, "offline"),
        (["wandb.mode=offline"], "key", None, True, "offline"),
        (["wandb.mode=online"], "key", "offline", False, "online"),
        (["wandb.mode=online"], None, None, True, "offline"),
        ([], "key", "offline", True, "offline"),
        ([], None, "disabled", False, None),  # wandb reads its variable itself
    ],
)
def test_where_the_log_goes(
    words: list[str],
    login: str | None,
    environment: str | None,
    offline: bool,
    mode: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wandb, "api", types.SimpleNamespace(api_key=login))
    (logger,) = _wandb(compose_config(words, warn=False), tmp_path)
    asked = logger._wandb_init
    assert logger._offline is offline and asked.get("mode") == mode
    # Without a login wandb.init must be told by name: it has settled on online when its key was read.
    assert ("no login" in caplog.text) == (login is None and environment is None)
    assert asked["id"] == (tmp_path / "wandb_id.txt").read_text().strip() and asked["resume"] == "allow"


def test_other_settings_reach_wandb(tmp_path: Path) -> None:
    words = ["wandb.mode=offline", "wandb.resume=must", "wandb.id=abc", "wandb.name=run"]
    (logger,) = _wandb(compose_config(words, warn=False), tmp_path)
    asked = logger._wandb_init
    assert (asked["resume"], asked["id"], asked["name"]) == ("must", "abc", "run")
    assert _wandb(compose_config(["wandb.mode=disabled"], warn=False), tmp_path) == []
    assert _wandb(compose_config(["wandb=null"], warn=False), tmp_path) == []
