"""The result of mode=plan as text."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def table(result: dict[str, Any]) -> str:
    """What ``tasks.plan`` prints."""
    step, time = result["step"], result["time"]
    total = sum(result["memory"].values())
    checkpointing = " with activation checkpointing" if result["activation_checkpointing"] else ""
    lines = [
        f"{result['algo']}, model {result['model']}, {result['vocabulary']:,} ids: "
        f"{result['parameters']['all']:,} parameters, {result['trained']:,} of them trained, "
        f"blocks in {result['precision']}",
        *(f"  {part:24}{size:>16,}" for part, size in result["parameters"].items() if part != "all"),
        "",
        f"a step: {step['sequences']:,} sequences, {step['tokens']:,} tokens = {step['devices']} devices x "
        f"{step['per_device']} sequences x {step['accumulation']} micro-batches",
        "",
        f"memory of a device, {result['strategy']}{checkpointing}:",
        *(_part(part, size) for part, size in result["memory"].items() if size or part == "gradients"),
        f"  {'all':24}{total / GIB:>12.2f} GiB of {result['memory_gb']:g}, "
        f"{result['reserve_gb']:g} of them kept in reserve",
        *(f"  (for a moment {part}: {size / GIB:.2f} GiB)" for part, size in result["temporaries"].items()),
        "",
        f"{'strategy':16}{'checkpointing':16}{'GiB':>10}   fits   largest loader.batch_size that fits",
        *(_way(way) for way in result["ways"]),
        "",
        f"operations: {sum(result['operations'].values()) / 1e9:.2f} GFLOP a token, "
        f"{time['flops_per_step'] / 1e15:.2f} PFLOP a step",
        *(f"  {part:24}{size / 1e9:>12.3f}" for part, size in result["operations"].items() if size),
        "",
        f"at {time['mfu']:.0%} of {time['tflops']:g} TFLOP/s a device: "
        f"{time['tokens_per_second']:,.0f} tokens a second, {time['seconds_per_step']:.3g} s a step, "
        f"{time['hours']:,.1f} hours for {time['max_steps']:,} steps",
    ]
    return "\n".join(lines)


def _part(part: str, size: int) -> str:
    comes_later = "" if size else " (none yet when the backward pass begins, which takes most)"
    return f"  {part:24}{size / GIB:>12.2f} GiB{comes_later}"


def _way(way: dict[str, Any]) -> str:
    largest = way["largest_batch_size"]
    return (
        f"{way['strategy']:16}{'yes' if way['activation_checkpointing'] else 'no':16}"
        f"{way['bytes'] / GIB:>10.2f}   {'yes' if way['fits'] else 'no':4}   {largest or 'none'}"
    )
