"""The algorithms by name; their code is in algorithms/."""

from __future__ import annotations

from algorithms.ar import AR
from algorithms.d3pm import D3PMAbsorb
from algorithms.distillation import Distillation
from algorithms.duo import DUO, DUO_BASE
from algorithms.imdm import IMDM
from algorithms.mdlm import MDLM
from algorithms.rectification import Rectification
from algorithms.redi import IMReDi
from algorithms.sdtt import IMSDTT
from algorithms.sedd import SEDDAbsorb
from trainer_base import TrainerBase

__all__ = [
    "ALGORITHMS",
    "AR",
    "DUO",
    "DUO_BASE",
    "IMDM",
    "IMSDTT",
    "MDLM",
    "D3PMAbsorb",
    "Distillation",
    "IMReDi",
    "Rectification",
    "SEDDAbsorb",
]

ALGORITHMS: dict[str, type[TrainerBase]] = {
    "ar": AR,
    "sedd": SEDDAbsorb,
    "d3pm": D3PMAbsorb,
    "mdlm": MDLM,
    "duo_base": DUO_BASE,
    "duo": DUO,
    "distillation": Distillation,
    "imdm": IMDM,
    "im-sdtt": IMSDTT,
    "im-redi": IMReDi,
    "rectification": Rectification,
}
