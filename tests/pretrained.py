"""Tiny pretrained models in folders: one of each architecture, with a tokenizer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SENTENCE = "the a cat dog man house mat sat ran saw on to in and red big old is was it"
WORDS = SENTENCE.split()  # noqa: SIM905
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ROWS = 32  # of the embedding; the tokenizer has fewer ids
COMMON = {
    "vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": lambda: tf.BertConfig(**COMMON),
    "roberta": lambda: tf.RobertaConfig(**COMMON, bos_token_id=1, eos_token_id=2),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**COMMON, bos_token_id=1, eos_token_id=2),
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=ROWS, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40,
        pad_token_id=0,
    ),
    "modernbert": lambda: tf.ModernBertConfig(
        **COMMON, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=8,
        global_attn_every_n_layers=2,
    ),
    "eurobert": lambda: tf.EuroBertConfig(**COMMON, bos_token_id=1, eos_token_id=2, num_key_value_heads=2),
}  # fmt: skip


def tokenizer(mask: bool = True) -> PreTrainedTokenizerFast:
    """24 words and special tokens, and a mask behind them."""
    words = [*SPECIAL, *WORDS, *(["<mask>"] if mask else [])]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>"} | ({"mask_token": "<mask>"} if mask else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def save(folder: Path, kind: str = "bert", *, mask: bool = True, **changes: Any) -> str:
    """A model with weights that matter, and its tokenizer; returns the folder."""
    config = CONFIGS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = tf.AutoModelForMaskedLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer(mask).save_pretrained(folder)
    return str(folder)


def text(folder: Path, lines: int = 300) -> str:
    """A file of short sentences."""
    path = folder / "text.txt"
    path.write_text(
        "\n".join(
            f"the {WORDS[2 + i % 5]} {WORDS[7 + i % 3]} on a {WORDS[14 + i % 3]} mat" for i in range(lines)
        )
    )
    return str(path)


# Stand-ins for models whose code lies beside their weights: the same names, layout and calling convention, in
# few lines of our own.
_REMOTE = """
import math
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast as Output


class StandInConfig(PreTrainedConfig):
    model_type = "{kind}"

    def __init__(self, vocab_size=32, {sizes}, **rest):
        self.vocab_size = vocab_size
        for name, value in dict({given}).items():
            setattr(self, name, value)
        super().__init__(**rest)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def half_turn(h):
    first, second = h.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (linear(width, width) for _ in "qkvo")
        self.ff_norm = nn.RMSNorm(width)
        self.ff_proj, self.ff_out = linear(width, 2 * width), linear(2 * width, width)

    def forward(self, x, mask, positions):
        q, k, v = (
            layer(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        angles = positions[:, None, :, None].float()
        q, k = (h * angles.cos() + half_turn(h) * angles.sin() for h in (q, k))
        x = x + self.attn_out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.ff_out(F.silu(self.ff_proj(self.ff_norm(x))))


class StandIn(PreTrainedModel):
    config_class = StandInConfig
    supports_gradient_checkpointing = False

    def _init_weights(self, module):
        pass

{model}
"""
_LLADA = """
    def __init__(self, config):
        super().__init__(config)
        width = config.d_model
        inner = dict(
            wte=nn.Embedding(config.vocab_size, width), ln_f=nn.RMSNorm(width),
            blocks=nn.ModuleList(Block(width, config.n_heads) for _ in range(config.n_layers)),
            ff_out=nn.Linear(width, config.vocab_size, bias=False),
        )
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(inner)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.transformer.ff_out

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **rest):
        net = self.model.transformer
        x = net.wte(input_ids) if inputs_embeds is None else inputs_embeds
        mask = None
        if attention_mask is not None and 0 in attention_mask:
            mask = torch.zeros(attention_mask.shape, dtype=x.dtype).masked_fill(attention_mask == 0, -1e9)
            mask = mask[:, None, None]
        for block in net.blocks:
            x = block(x, mask, torch.arange(x.shape[1])[None])
        return Output(logits=net.ff_out(net.ln_f(x)))
"""
_DREAM = """
    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.model.layers = nn.ModuleList(
            Block(width, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.model.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **rest):
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None and attention_mask.ndim != 4:
            raise ValueError("this model takes attention masks of four dimensions")
        positions = torch.arange(x.shape[1])[None] if position_ids is None else position_ids
        for block in self.model.layers:
            x = block(x, attention_mask, positions)
        return Output(logits=self.lm_head(self.model.norm(x)))
"""
_SIZES = {
    "llada": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_sequence_length": 40},
    "Dream": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
    },
}


def save_remote(folder: Path, kind: str) -> str:
    """A model of the layout of LLaDA ("llada") or Dream, with the code that its config.json points to."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = _SIZES[kind]
    code = _REMOTE.replace("{kind}", kind).replace("{model}", _LLADA if kind == "llada" else _DREAM)
    code = code.replace("{sizes}", ", ".join(f"{name}={value}" for name, value in sizes.items()))
    code = code.replace("{given}", ", ".join(f"{name}={name}" for name in sizes))
    (folder / "modeling_stand_in.py").write_text(code)
    mask_id = len(tokenizer()) - 1
    settings = {
        "model_type": kind, "architectures": ["StandIn"], "vocab_size": ROWS, **sizes,
        "mask_token_id": mask_id,
        "auto_map": {
            "AutoConfig": "modeling_stand_in.StandInConfig", "AutoModel": "modeling_stand_in.StandIn",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    config = tf.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = tf.AutoModel.from_config(config, trust_remote_code=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    made = tokenizer()
    made.save_pretrained(folder)
    # As published: the token is there, and its role is not told.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            content.pop("mask_token", None)
            (folder / name).write_text(json.dumps(content))
    return str(folder)
