"""Writes text with the pretrained masked language model in this folder, in few calls. Licence: Apache 2.0.

    from mask_diffusion import load
    model, tokenizer = load(".")
    print(tokenizer.batch_decode(model.generate(num_samples=4, steps=8)))

The folder is an ordinary one of transformers: ``AutoModelForMaskedLM.from_pretrained`` loads it without this
file, which adds the random state of masks and the sampler. PyTorch and transformers are all that it needs.
Shapes: B sequences, L positions, D width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.export.sampling_mask_diffusion import _start, _write

_M1, _M2, _SECOND_OFFSET = 0xD251125F, 0xCD9E8D57, 12345


class MaskDiffusion(nn.Module):
    """A pretrained model that writes by unmasking.

    Args:
        base: the masked language model.
        settings: the content of mask_diffusion.json.
    """

    def __init__(self, base: Any, settings: dict[str, Any]) -> None:
        super().__init__()
        self.base, self.settings, self.noise = base, settings, settings["mask_noise"]
        width = settings["hidden_size"]
        if self.noise is None:
            return
        dim = self.noise["noise_dim"]
        if self.noise["num_mask"] > 0:
            self.imdm_mlp: nn.Module = nn.Embedding(self.noise["num_mask"], width)
            return
        if self.noise["noise_type"] == "learnable":
            self.learnable_noise_mu = nn.Parameter(torch.zeros(1, 1, dim))
            self.learnable_noise_sigma = nn.Parameter(torch.ones(1, 1, dim))
        self.imdm_mlp = nn.Sequential(
            nn.Linear(dim, 4 * width), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, noise_seeds: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, V) of the clean tokens.

        Args:
            input_ids: (B, L) int64 with masks.
            attention_mask: (B, L), 0 where nothing sees the position.
            noise_seeds: (B, L) int64, the random state of each mask; needed by models that have one.
        """
        embedded = self.base.get_input_embeddings()(input_ids)
        if self.noise is not None:
            if noise_seeds is None:
                raise ValueError("give noise_seeds: the masks of this model carry a random state")
            masked = input_ids == self.settings["mask_id"]
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            noise = self._noise(noise_seeds[masked], positions[masked]).to(embedded.dtype)
            embedded = embedded.masked_scatter(masked[..., None], embedded[masked] + noise)
        logits = self.base(inputs_embeds=embedded, **self._seen(attention_mask)).logits
        if self.settings["shifted"]:  # a position is told by the one in front of it
            logits = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)
        return logits[..., : self.settings["vocab_size"]]

    def _seen(self, attention_mask: Tensor | None) -> dict[str, Tensor]:
        if attention_mask is None or bool(attention_mask.all()):
            return {}
        seen = attention_mask.bool()
        if self.settings["attention"] == "full":
            own = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
            positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
            return {"attention_mask": seen[:, None, None] | own, "position_ids": positions}
        found = {"attention_mask": seen.long()}
        if self.settings["padded_positions"]:
            found["position_ids"] = seen.long().cumsum(-1) * seen + self.base.config.pad_token_id
        return found

    def _noise(self, seeds: Tensor, positions: Tensor) -> Tensor:
        """What is added at N masked positions, (N, D)."""
        dim, kind, count = (self.noise[key] for key in ("noise_dim", "noise_type", "num_mask"))
        if count > 0:
            uniform = _hashed(seeds, positions * dim)
            return self.imdm_mlp((uniform * count).clamp(0, count - 1e-5).long().clamp(max=count - 1))
        index = positions[:, None] * dim + torch.arange(dim, device=seeds.device)
        first = _hashed(seeds[:, None], index)
        if kind == "rand":
            noise = 2 * first - 1
        else:
            second = _hashed(seeds[:, None], index + _SECOND_OFFSET, _M2, _M1).clamp(min=1e-8)
            noise = (-2 * first.clamp(min=1e-8).log()).sqrt() * (2 * math.pi * second).cos()
        noise = noise * self.noise["noise_scale"]
        if kind == "learnable":
            noise = self.learnable_noise_mu[0] + self.learnable_noise_sigma[0] * noise
        return self.imdm_mlp(noise)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *, num_samples: int = 1,
        length: int | None = None, steps: int = 8, temperature: float = 1.0, seed: int = 1,
    ) -> Tensor:  # fmt: skip
        """Write texts: ids (B, L).

        Args:
            input_ids: (B, P) what is given, with masks where something is to be written; masks follow up to
                ``length``. None: ``num_samples`` texts from masks alone.
            attention_mask: (B, P), 0 at padding, which is not seen and stays as it is.
            length: L; None: that of the training.
            steps: calls of the network.
            temperature: of the distribution of tokens.
            seed: the same one gives the same texts.
        """
        mask_id, device = self.settings["mask_id"], next(self.parameters()).device
        length = length or self.settings["length"]
        ids, seen = _start(input_ids, attention_mask, num_samples, length, mask_id, device)

        def logits(now: Tensor, sigma: float, seeds: Tensor | None, where: Tensor) -> Tensor:
            return self(now, seen, seeds)[where]

        fixed = torch.zeros_like(ids, dtype=torch.bool) if seen is None else seen == 0
        noisy, schedule = self.noise is not None, self.settings["schedule"]
        return _write(logits, ids, mask_id, steps, temperature, seed, schedule, noisy, fixed)


def load(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[MaskDiffusion, Any]:
    """The model in ``folder`` and its tokenizer.

    Args:
        trust_remote_code: for models whose code lies in the folder (LLaDA, Dream).
    """
    import transformers
    from safetensors.torch import load_file

    folder = Path(folder)
    settings = json.loads((folder / "mask_diffusion.json").read_text(encoding="utf-8"))
    auto = getattr(transformers, settings["auto_class"])
    base = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    model = MaskDiffusion(base, settings)
    if (folder / "mask_noise.safetensors").is_file():
        weights = {f"base.{name}": value for name, value in base.state_dict().items()}
        model.load_state_dict(weights | load_file(folder / "mask_noise.safetensors"))
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def _hashed(seeds: Tensor, index: Tensor, first: int = _M1, second: int = _M2) -> Tensor:
    """Counter-based uniforms in [0, 1) float32: a pure function of (seed, index)."""
    state = (index * second) ^ (seeds * first)
    state = (state ^ (state >> 15)) * first
    state = (state ^ (state >> 13)) * second
    return ((state ^ (state >> 16)) & 0xFFFFFFFF).float() * 2.0**-32
