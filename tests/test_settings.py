"""The settings of algorithms: found without torch, and the same as those that are imported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from algo import OBJECTIVES
from config.algo import algorithm_settings, settings_classes

TRAITS = ("family", "default_predictor", "causal", "needs_pairs", "exact_likelihood", "in_rounds")


def test_every_objective_has_settings_and_the_other_way_round() -> None:
    assert set(OBJECTIVES) == set(algorithm_settings()) and len(OBJECTIVES) >= 11


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_settings_found_by_source_are_the_imported_ones(name: str) -> None:
    found, imported = algorithm_settings()[name], OBJECTIVES[name].Settings
    assert found.__name__ == imported.__name__ and found.__doc__ == imported.__doc__

    def described(cls: type) -> list[tuple[object, ...]]:
        return [(f.name, f.default, f.metadata["limits"], f.type) for f in dataclasses.fields(cls)]

    assert described(found) == described(imported)
    for trait in TRAITS:
        assert getattr(found, trait) == getattr(imported, trait), trait
    assert found().profile() == imported().profile() and found().mask_noise() == imported().mask_noise()


def test_a_settings_class_on_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class OddSettings(NobodysSettings):\n    pass\n")
    with pytest.raises(NameError, match="OddSettings is based on a class that no file"):
        settings_classes(tmp_path)


def test_classes_may_stand_before_their_bases(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class ASettings(BSettings):\n    pass\n")
    (tmp_path / "b.py").write_text("import torch\n\nclass BSettings(AlgorithmSettings):\n    pass\n")
    made = settings_classes(tmp_path)
    assert list(made) == ["BSettings", "ASettings"] and issubclass(made["ASettings"], made["BSettings"])
