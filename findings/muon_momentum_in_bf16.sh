#!/usr/bin/env bash
# Expected: torch.optim.Muon keeps the running average of gradients as its momentum, whatever the dtype.
# What happens (torch 2.13.0): for bfloat16 parameters with nesterov=False the step orthogonalises the momentum buffer
#   in place: its first division turns the stored average into one of norm 1. In float32, and with nesterov=True, the
#   buffer stays the average. Nothing warns.
# What it means: pure-bf16 trainings with plain momentum follow the direction of the newest gradient far more (or less)
#   than momentum says, and a resumed run inherits the buffer. Keep float32 master weights, or nesterov=True.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)
found = {}
for dtype in (torch.float32, torch.bfloat16):
    for nesterov in (True, False):
        weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=dtype))
        optimizer = torch.optim.Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=nesterov)
        weight.grad = 8 * torch.ones(4, 4, dtype=dtype) + torch.eye(4, dtype=dtype)
        average = 0.1 * float(weight.grad.float().norm())
        optimizer.step()
        norm = float(optimizer.state[weight]["momentum_buffer"].float().norm())
        found[dtype, nesterov] = abs(norm / average - 1) < 0.01
        print(f"{dtype}, nesterov={nesterov}: momentum has norm {norm:.3f}, the average of gradients {average:.3f}")
wrong = [key for key, right in found.items() if not right]
raise SystemExit(0 if wrong == [(torch.bfloat16, False)] else 1)
PY
