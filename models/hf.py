"""A pretrained masked language model of Hugging Face as the network (``model=hf``).

Its own embeddings, blocks and head are used as they are. The noise of masks is added to the embeddings and is
zero at the start, so that the first step says what the pretrained model says, bit for bit.
Shapes: B sequences, L positions, D width, V vocabulary with the mask, W rows of the model's own embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.dit import BackboneConfig
from models.embeddings import MaskNoise
from models.lora import LoraConfig, adapt
from models.precision import Precision
from models.sharding import unshard_root
from utils import get_logger

log = get_logger("hf")
KEY = "model.path"
NOISE_FILE = "mask_noise.safetensors"  # beside an exported model


@dataclass(frozen=True)
class Layout:
    """What differs between architectures.

    Attributes:
        blocks: the name of the list of transformer blocks.
        padded_positions: positions are counted from padding_idx + 1, and padding has none (RoBERTa): given
            embeddings instead of ids, the model cannot know, and must be told.
        shifted: the features of a position tell the next one (models that began as causal ones: Dream).
        attention: "padding" takes a (B, L) mask; "full" a (B, 1, L, L) one, and counted positions.
        scale_logits: the name of the setting that divides logits by sqrt(D).
    """

    blocks: str
    padded_positions: bool = False
    shifted: bool = False
    attention: str = "padding"
    scale_logits: str | None = None


LAYOUTS = {
    "bert": Layout("bert.encoder.layer"),
    "roberta": Layout("roberta.encoder.layer", padded_positions=True),
    "xlm-roberta": Layout("roberta.encoder.layer", padded_positions=True),
    "camembert": Layout("roberta.encoder.layer", padded_positions=True),
    "distilbert": Layout("distilbert.transformer.layer"),
    "modernbert": Layout("model.layers"),
    "eurobert": Layout("model.layers"),
    "llada": Layout("model.transformer.blocks", scale_logits="scale_logits"),
    "Dream": Layout("model.layers", shifted=True, attention="full"),
}
# Names of probabilities of dropout in the settings of those models; model.dropout stands for all of them.
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "mlp_dropout",
    "embedding_dropout", "residual_dropout", "hidden_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class HfConfig(BackboneConfig):
    """Which pretrained model, and what is added to it; sizes are those of its config.json.

    Args:
        path: a folder, or a name on the hub.
        trust_remote_code: run the code that lies in the folder.
        base_dtype: "float32", or "bf16" for frozen weights behind adapters.
        lora: adapters; None trains all weights.
    """

    path: str = ""
    trust_remote_code: bool = False
    base_dtype: str = "float32"
    lora: LoraConfig | None = None


class Head(NamedTuple):
    """The linear map from features to the logits of the V ids of the tokenizer, and no others."""

    weight: Tensor
    bias: Tensor | None


class HfBackbone(nn.Module):
    """A pretrained model behind the protocol of ``diffusion.backbone``.

    Args:
        config: which model, and what is added.

    Attributes:
        base: the pretrained model, whose head gives back what it is given: whoever needs logits runs
            ``head`` where they are needed.
        vocab_embed: the noise of masks.
        layout: how the architecture differs from others.
        base_hash: a digest of the weights that adapters belong to; None without adapters.

    Raises:
        UserError: there is no such model, it has no list of blocks, or the vocabulary is another one.
    """

    def __init__(self, config: HfConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = Precision()
        self._checkpointing = False
        self._attention_mask: Tensor | None = None
        self.base = load_base(config)
        self.layout = LAYOUTS[self.base.config.model_type]
        _fit_vocabulary(self.base, config)
        self.base_hash = None if config.lora is None else digest(self.base)
        self._linear.forward = _as_it_is
        if config.lora is not None:
            if config.base_dtype == "bf16":
                self.base.to(torch.bfloat16)
            adapt(self.base, self.blocks, config.lora)
        self.vocab_embed = MaskNoise(config.hidden_size, config.mask_id, config.mask_noise)
        self._read_noise()
        self.register_state_dict_post_hook(_keep_own)
        self.register_load_state_dict_pre_hook(_fill_rest)

    def _read_noise(self) -> None:
        """Start from the noise of masks that lies beside an exported model, if it is of the same kind."""
        file = Path(self.config.path).expanduser() / NOISE_FILE
        if self.config.mask_noise is None or not file.is_file() or torch.empty(0).is_meta:
            return
        from safetensors.torch import load_file

        own, found = self.vocab_embed.state_dict(), load_file(file)
        if {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in found.items()}:
            self.vocab_embed.load_state_dict(found)
        else:
            log.warning("%s is of another kind of noise, which starts at zero", file)

    @property
    def _linear(self) -> nn.Linear:
        """The layer of the head; called, it gives back what it is given."""
        return self.base.get_output_embeddings()

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return reduce(getattr, self.layout.blocks.split("."), self.base)

    @property
    def head(self) -> Head:
        """The map from features to logits, D -> V."""
        unshard_root(self)
        layer, size = self._linear, self.config.vocab_size
        if layer.out_features == size:
            return Head(layer.weight, layer.bias)
        return Head(layer.weight[:size], None if layer.bias is None else layer.bias[:size])

    @property
    def embedding(self) -> Tensor:
        """The embeddings of the ids of the tokenizer, (V, D)."""
        unshard_root(self)
        return self.base.get_input_embeddings().weight[: self.config.vocab_size]

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if not on:
            return
        if not self.base.supports_gradient_checkpointing:
            problem = f"{type(self.base).__name__} does not offer it"
            raise UserError("training.activation_checkpointing", True, problem, "use False")
        if hasattr(self.base.config, "use_cache"):
            self.base.config.use_cache = False  # or a warning says that it was switched off
        self.base.gradient_checkpointing_enable({"use_reentrant": False})

    def parameter_parts(self) -> dict[str, int]:
        """Numbers of parameters by part of the network, for mode=plan."""
        parts = {"embedding": 0, "mask noise": 0, "adapters": 0, "blocks": 0, "head and norms": 0}
        for name, value in self.named_parameters():
            part = "head and norms"
            if name.startswith("vocab_embed."):
                part = "mask noise"
            elif ".lora_" in name:
                part = "adapters"
            elif name.startswith(f"base.{self.layout.blocks}."):
                part = "blocks"
            elif value is self.base.get_input_embeddings().weight:
                part = "embedding"
            parts[part] += value.numel()
        return {part: size for part, size in parts.items() if size}

    def compile_blocks(self, on: bool = True) -> None:
        """Run the blocks compiled from now on; parameters keep their names."""
        if on:
            for block in self.blocks:
                block.compile(dynamic=True)

    @contextlib.contextmanager
    def attending(self, attention_mask: Tensor | None) -> Iterator[None]:
        """Inside the block no position sees those where ``attention_mask`` (B, L) bool is False: padding.

        A call of another shape sees everything.
        """
        before, self._attention_mask = self._attention_mask, attention_mask
        try:
            yield
        finally:
            self._attention_mask = before

    def body(
        self,
        x: Tensor,
        sigma: Tensor | None,
        mask_seeds: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """All of the network but its head.

        Args:
            x: (B, L) int64 ids.
            sigma: not seen; pretrained models know no noise level.
            mask_seeds: random state of the masks, see ``MaskNoise.add_noise``.
            embedded: (B, L, D) in the place of the embeddings of ``x``.

        Returns:
            (B, L, D) float32.
        """
        return self.sharded_body(x, mask_seeds, None if embedded is None else lambda: embedded)

    def sharded_body(
        self, x: Tensor, mask_seeds: Tensor | None, embedded: Callable[[], Tensor] | None
    ) -> Tensor:
        """What ``body`` does; models/sharding.py makes weights whole around it."""
        low = self.precision.block_dtype
        with torch.autocast(x.device.type, enabled=False):  # noise is float32, whatever the blocks are
            if embedded is None:
                hidden = self.base.get_input_embeddings()(x)
                hidden = self.vocab_embed.add_noise(hidden.float(), x, mask_seeds).to(hidden.dtype)
            else:
                hidden = embedded()
        with torch.autocast(x.device.type, dtype=low or torch.bfloat16, enabled=low is not None):
            features = self._run(hidden, self._mask_for(x))
        features = features.float()
        if self.layout.shifted:
            features = torch.cat((features[:, :1], features[:, :-1]), dim=1)
        return features

    def _mask_for(self, x: Tensor) -> Tensor | None:
        """(B, L) bool, None where every position is seen."""
        mask = self._attention_mask
        if mask is None or mask.shape != x.shape or bool(mask.all()):
            return None
        return mask.to(x.device).bool()

    def _run(self, hidden: Tensor, seen: Tensor | None) -> Tensor:
        given: dict[str, Any] = {"inputs_embeds": hidden}
        if seen is not None and self.layout.attention == "full":
            own = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
            given["attention_mask"] = seen[:, None, None] | own  # a row that sees nothing would be NaN
            given["position_ids"] = (seen.long().cumsum(-1) - 1).clamp(min=0)
        elif seen is not None:
            given["attention_mask"] = seen.long()
            if self.layout.padded_positions:
                given["position_ids"] = seen.long().cumsum(-1) * seen + self.base.config.pad_token_id
        return self.base(**given).logits

    def forward(self, x: Tensor, sigma: Tensor | None, mask_seeds: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) float32; arguments as in ``body``."""
        head = self.head
        return F.linear(self.body(x, sigma, mask_seeds), head.weight.float(), _floating(head.bias))


def _floating(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _as_it_is(features: Tensor) -> Tensor:
    return features


# The model and its vocabulary -----------------------------------------------------------------------


def load_base(config: HfConfig) -> Any:
    """The pretrained model with float32 weights; without weights on PyTorch's meta device.

    Raises:
        UserError: it cannot be read, or is of an architecture that is not in the table.
    """
    import transformers

    path = str(Path(config.path).expanduser()) if Path(config.path).expanduser().exists() else config.path
    common = {"trust_remote_code": config.trust_remote_code}
    try:
        settings = transformers.AutoConfig.from_pretrained(path, **common)
        _set_dropout(settings, config.dropout)
        _refuse_unknown(settings, config.path)
        auto = getattr(transformers, auto_class(settings))
        if torch.empty(0).is_meta:
            return auto.from_config(settings, dtype=torch.float32, **common)
        with _no_progress_bar():
            model = auto.from_pretrained(path, config=settings, dtype=torch.float32, **common)
        return model.train()  # Lightning leaves modules in eval mode there
    except UserError:
        raise
    except Exception as error:  # the libraries below raise a dozen unrelated types here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        hint = "give a folder that transformers reads, or a name on the hub"
        raise UserError(KEY, config.path, f"no model can be read there ({reason})", hint) from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def auto_class(settings: Any) -> str:
    """Which of transformers' auto classes builds the model with its head."""
    offered = getattr(settings, "auto_map", None) or {}
    return next((name for name in ("AutoModelForMaskedLM", "AutoModel") if name in offered),
                "AutoModelForMaskedLM")  # fmt: skip


def _set_dropout(settings: Any, dropout: float) -> None:
    for name in _DROPOUTS:
        if hasattr(settings, name):
            setattr(settings, name, dropout)


def _refuse_unknown(settings: Any, path: str) -> None:
    if settings.model_type not in LAYOUTS:
        hint = f"use one of {', '.join(LAYOUTS)}, or add a line to LAYOUTS in models/hf.py"
        raise UserError(KEY, path, f"is of an architecture {settings.model_type} that is not known", hint)
    layout = LAYOUTS[settings.model_type]
    if layout.scale_logits and getattr(settings, layout.scale_logits, False):
        raise UserError(KEY, path, f"has {layout.scale_logits}, which is not known here", "use another model")
    if getattr(settings, "weight_tying", False):
        raise UserError(KEY, path, "has weight_tying without a layer for its head", "use another model")


@torch.no_grad()
def _fit_vocabulary(base: Any, config: HfConfig) -> None:
    """Give the model rows for all V ids: a mask that is new to it gets one, the mean of the others.

    Ids between V and W, which no tokenizer writes (padding of the matrix), have no logits here.
    """
    rows, size = base.get_input_embeddings().weight.shape[0], config.vocab_size
    if rows >= size:
        return
    if config.mask_id != size - 1 or rows < size - 1:
        problem = f"has {rows} embeddings, the tokenizer {size} ids"
        raise UserError(KEY, config.path, problem, "use the tokenizer that lies beside it")
    base.resize_token_embeddings(size, mean_resizing=False)
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        layer.weight[rows] = layer.weight[:rows].mean(0)
    log.info("%s: one more id, %d, is the mask", config.path, rows)


def digest(base: nn.Module) -> str:
    """A digest of all weights by name: which model adapters belong to. Empty on PyTorch's meta device."""
    made = hashlib.sha256()
    for name, value in base.named_parameters():
        if value.is_meta:
            return ""
        made.update(f"{name}{tuple(value.shape)}".encode())
        made.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return made.hexdigest()


# What is kept of it -----------------------------------------------------------------------------------


def _kept_names(network: HfBackbone) -> set[str]:
    """Of a state_dict: each tied weight once, and of a model with adapters those and the noise of masks."""
    names = {name for name, _ in network.named_parameters()}
    if network.config.lora is None:
        return names
    return {name for name in names if ".lora_" in name or name.startswith("vocab_embed.")}


def _keep_own(network: HfBackbone, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    kept = _kept_names(network)
    for name in [n for n in state if n.startswith(prefix) and n.removeprefix(prefix) not in kept]:
        del state[name]


def _fill_rest(network: HfBackbone, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Names that files leave out are those of this model, or of the weight that they are tied to."""
    kept = _kept_names(network)
    for name, value in _all_tensors(network):
        if name not in kept:
            tied = next((k for k, p in network.named_parameters() if p is value and f"{prefix}{k}" in state),
                        None)  # fmt: skip
            state.setdefault(prefix + name, value.detach() if tied is None else state[prefix + tied])


def _all_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    persistent = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in network.named_modules()
        for buffer in module._buffers
        if buffer not in module._non_persistent_buffers_set
    }
    yield from ((name, b) for name, b in network.named_buffers(remove_duplicate=False) if name in persistent)


def refuse_other_base(network: nn.Module, checkpoint: dict[str, Any], *, key: str, path: str) -> None:
    """Raise when adapters of a checkpoint are those of another pretrained model, or one of both has none.

    Args:
        network: the network that is to get the weights.
        checkpoint: with ``base`` {"path", "hash"} where its weights are adapters.
        key: the configuration key that named it; ``path`` is what it named.
    """
    own = network.base_hash if isinstance(network, HfBackbone) else None
    base = checkpoint.get("base")
    theirs = base.get("hash") if isinstance(base, dict) else None
    if theirs == own:
        return
    if own is None:
        hint = "add model=hf with that model.path, and lora.rank as in its training"
        raise UserError(key, path, f"holds adapters of the model {base.get('path')}", hint)
    if theirs is None:
        hint = "make it the base: mode=export, then model.path=<that folder>; or use lora.rank=0"
        raise UserError(key, path, "holds all weights, not adapters", hint)
    problem = f"holds adapters of another model ({base.get('path')}, {theirs[:12]}, here {own[:12]})"
    raise UserError(key, path, problem, "give model.path as in its training")
