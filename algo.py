"""The algorithms by name; their code is in algorithms/."""

from __future__ import annotations

from algorithms.imdm import IMDM
from algorithms.mdlm import MDLM
from trainer_base import TrainerBase

__all__ = ["ALGORITHMS", "IMDM", "MDLM"]

ALGORITHMS: dict[str, type[TrainerBase]] = {"mdlm": MDLM, "imdm": IMDM}
