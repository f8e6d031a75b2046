"""What a training step costs: bytes that live at its peak, and floating-point operations.

Bytes follow what autograd keeps of models/dit.py, tensor by tensor; tests compare the sum with what it
really keeps, bench/plan_check.py the peaks with measured ones.
Shapes: B sequences, L positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.attention import PLAIN_MAX_SCORES
from models.dit import MLP_RATIO, BackboneConfig

FLOAT = 4  # bytes: parameters, gradients, moments, residual stream, head
HEAD_CHUNK = {"cpu": 2**23 * FLOAT, "cuda": 2**24 * FLOAT}  # of logits, see diffusion/linear_nll.py
NOISE_CHUNK = {"cpu": 2**17 * 8, "cuda": 2**24 * 8}  # of hashed counters, see models/noise.py


@dataclass(frozen=True)
class NetworkSpec:
    """A network and how it computes.

    Attributes:
        config: its hyper-parameters.
        item: bytes of a number in the blocks, 2 or 4.
        device: "cuda" or "cpu".
        sees_time: each sequence has its own conditioning; else all share one.
        checkpointing: blocks keep their input alone.
        fused: attention keeps no scores.
    """

    config: BackboneConfig
    item: int
    device: str
    sees_time: bool
    checkpointing: bool = False
    fused: bool = True


@dataclass(frozen=True)
class StepWorkload:
    """What a loss asks of its network for a micro-batch.

    Attributes:
        rows: sequences.
        head_share: part of the positions that the head runs at, at most in a micro-batch.
        noise_share: part of the positions that carry mask noise.
        passes: calls of the network with gradients.
        chunks: buffers as large as a chunk of logits that the loss holds at a time.
        teacher_passes: calls of a teacher, without gradients.
    """

    rows: int
    head_share: float
    noise_share: float = 0.0
    passes: int = 1
    chunks: float = 1
    teacher_passes: int = 0


def parameters(config: BackboneConfig, named: dict[str, int]) -> dict[str, int]:
    """Parameters by part, from the sizes of all by name."""
    parts = {"embedding": 0, "mask noise": 0, "time": 0, "blocks": 0, "head": 0, "final norm": 0}
    for name, size in named.items():
        inner = name.removeprefix("backbone.")
        if inner == "vocab_embed.embedding":
            part = "embedding"
        elif inner.startswith("vocab_embed."):
            part = "mask noise"
        elif inner.startswith("sigma_map."):
            part = "time"
        elif inner.startswith("blocks."):
            part = "blocks"
        else:
            part = "head" if ".linear." in inner else "final norm"
        parts[part] += size
    return {part: size for part, size in parts.items() if size}


def block_bytes(net: NetworkSpec, rows: int) -> int:
    """What autograd keeps of one block between its forward and its backward pass, copies of weights apart."""
    config, item = net.config, net.item
    tokens = rows * config.length * config.hidden_size
    # Conditioning that all share is a part of norms and weights.
    mask = tokens * (1 if net.device == "cuda" else item) if config.dropout > 0 else 0
    norm = FLOAT * tokens + item * tokens  # its input, its output as the next product reads it
    branch = mask
    if net.sees_time and not config.causal:
        norm += FLOAT * tokens  # the normalised input, for the gradient of the scale
        branch += item * tokens  # the update, for the gradient of the gate
    mlp = 2 * MLP_RATIO * item * tokens  # before and after GELU
    return 2 * (norm + branch) + mlp + _attention_bytes(net, rows) + item * tokens


def _attention_bytes(net: NetworkSpec, rows: int) -> int:
    config, item = net.config, net.item
    tokens = rows * config.length * config.hidden_size
    scores = rows * config.n_heads * config.length**2
    norms = 0
    if config.qk_norm:  # q and k in float32, which are parts of q, k, v where that is float32
        norms = (2 if item < FLOAT else 3) * FLOAT * tokens
        norms += 4 * FLOAT * rows * config.length * config.n_heads
    if takes_plain_way(net, rows):
        kept = 2 if config.score_cap > 0 else 1  # softmax; tanh before it
        return kept * item * scores + 3 * item * tokens + norms
    # q, k and v as they came (v is a part of that), q and k rotated, the normaliser; not the output.
    return 5 * item * tokens + FLOAT * rows * config.n_heads * config.length + norms


def takes_plain_way(net: NetworkSpec, rows: int) -> bool:
    """Whether attention writes its scores down (models/attention.py)."""
    config = net.config
    if config.attention == "plain" or not net.fused:
        return True
    if net.device == "cpu":
        small = rows * config.n_heads * config.length**2 <= PLAIN_MAX_SCORES
        return config.score_cap > 0 or (config.attention == "auto" and net.item == 2 and small)
    return False


def weight_copies(net: NetworkSpec) -> int:
    """Bytes of a block's weights in other forms that wait for its backward pass."""
    square = net.config.hidden_size**2
    if net.item < FLOAT:
        return net.item * (4 + 2 * MLP_RATIO) * square
    gated = 0 if net.config.causal or net.sees_time else 1 + MLP_RATIO
    return FLOAT * gated * square


def kept_bytes(net: NetworkSpec, work: StepWorkload) -> dict[str, int]:
    """What waits for the backward pass of a micro-batch, by part."""
    config = net.config
    tokens = work.rows * config.length * config.hidden_size
    block, copies = block_bytes(net, work.rows), weight_copies(net)
    if net.checkpointing:
        blocks = config.n_blocks * FLOAT * tokens
        again = block + copies  # one block at a time is whole again
    else:
        blocks, again = config.n_blocks * (block + copies), 0
    around = 2 * FLOAT * tokens + (FLOAT * tokens if net.sees_time else 0)  # final norm: input, features
    return {
        "blocks": work.passes * blocks,
        "a block computed again": again,
        "mask noise": work.passes * noise_bytes(net, work),
        "final norm": work.passes * around,
    }


def noise_bytes(net: NetworkSpec, work: StepWorkload) -> int:
    """What autograd keeps of the noise MLP at masked positions: noise, before and after GELU, its output."""
    noise, width = net.config.mask_noise, net.config.hidden_size
    if noise is None or noise.num_mask > 0:
        return 0
    positions = round(work.noise_share * work.rows * net.config.length)
    return FLOAT * positions * (noise.noise_dim + 2 * MLP_RATIO * width)


def temporaries(net: NetworkSpec, work: StepWorkload) -> dict[str, int]:
    """The largest tensors that come and go, in bytes."""
    config = net.config
    positions = round(work.head_share * work.rows * config.length)
    logits = min(FLOAT * positions * config.vocab_size, HEAD_CHUNK[net.device])
    found = {"logits of a chunk": round(work.chunks * logits)}
    if config.mask_noise is not None and config.mask_noise.num_mask == 0:
        counters = 8 * round(work.noise_share * work.rows * config.length) * config.mask_noise.noise_dim
        found["hash of mask noise"] = 4 * min(counters, NOISE_CHUNK[net.device])
    return found


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a training, in numbers of numbers; ``root`` are those outside of the blocks."""

    total: int
    trained: int
    root: int
    head: int  # of one of the two V x D matrices
    ema: bool
    teacher: bool
    frozen_item: int = FLOAT  # bytes of a number that is not trained


def memory(
    net: NetworkSpec, work: StepWorkload, held: ParameterCounts, *, devices: int, sharded: bool, passes: int
) -> dict[str, int]:
    """Bytes of one device at the peak of an optimizer step (not the first), by part.

    Args:
        devices: they share weights, gradients, moments and averages where ``sharded``; else each has all.
        passes: micro-batches of an optimizer step.
    """
    share = devices if sharded else 1
    parts = {
        "weights": (FLOAT * held.trained + held.frozen_item * (held.total - held.trained)) // share,
        "moments": 2 * FLOAT * held.trained // share,
        "averages": FLOAT * held.trained // share if held.ema else 0,
        # It shares what is frozen, unless that is in shards.
        "teacher": FLOAT * (held.total if sharded else held.trained) if held.teacher else 0,
        "gradients": FLOAT * held.trained // share,
    }
    if sharded:
        block = (held.total - held.root) // max(1, net.config.n_blocks)
        # The root unit stays whole, with its gradients; of the blocks one computes and the next one comes.
        parts["whole units"] = FLOAT * (2 * held.root + 3 * block)
    kept = kept_bytes(net, work)
    head_grad, tokens = FLOAT * held.head, work.rows * net.config.length * net.config.hidden_size
    features = round(FLOAT * work.head_share * tokens)
    # When the head is done, the gradient of its weight exists twice: as it was made, and scaled. Gradients of
    # other parameters exist only if micro-batches came before; the end of the backward pass has them all.
    early = sum(kept.values()) + 2 * head_grad + 2 * features + FLOAT * tokens
    chunk = sum(kept.values()) + head_grad + 2 * features + temporaries(net, work)["logits of a chunk"]
    late = _last_block(net, work) + kept["mask noise"] + (head_grad if passes > 1 else 0)
    has_buckets = devices > 1 and not sharded  # DDP's, which are the gradients and always there
    waiting = parts["gradients"] if passes == 1 and not has_buckets else 0
    if max(early, chunk) - waiting < late:
        return parts | {"activations": late}
    parts["gradients"] -= waiting
    return parts | {"activations": max(early, chunk)}


def _last_block(net: NetworkSpec, work: StepWorkload) -> int:
    """The first block when the backward pass reaches it: what was kept, and about as much of gradients."""
    grads = (MLP_RATIO * net.item + 2 * FLOAT) * work.rows * net.config.length * net.config.hidden_size
    return block_bytes(net, work.rows) + weight_copies(net) + grads


# Operations --------------------------------------------------------------------------------------


def flops_per_token(net: NetworkSpec, work: StepWorkload) -> dict[str, float]:
    """Floating-point operations of a training step per token; a multiply-add is two.

    ``work`` has mean shares here. A backward pass costs two forward ones; what checkpointing computes again
    is a part of its own.
    """
    config, width = net.config, net.config.hidden_size
    products = 2 * (4 + 2 * MLP_RATIO) * width**2
    attention = 4 * config.length * width * (0.5 if config.causal else 1)
    blocks = config.n_blocks * (products + attention)
    head = 2 * config.vocab_size * width * work.head_share
    noise = 0.0
    if config.mask_noise is not None and config.mask_noise.num_mask == 0:
        noise = 2 * MLP_RATIO * width * (config.mask_noise.noise_dim + width) * work.noise_share
    return {
        "blocks": 3 * work.passes * blocks,
        "mask noise": 3 * work.passes * noise,
        "head": 3 * work.passes * head,
        "teacher": work.teacher_passes * (blocks + noise) + (head if work.teacher_passes else 0),
        "computed again": work.passes * blocks if net.checkpointing else 0.0,
    }


def with_rows(work: StepWorkload, rows: int) -> StepWorkload:
    """The same loss on another number of sequences."""
    return replace(work, rows=rows)
