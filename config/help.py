"""The text of ``python main.py --help``: groups and keys as the schema and the yaml files have them."""

from __future__ import annotations

from config.keys import all_keys, groups

HEADER = """python main.py key=value ...          train, evaluate, sample; e.g.

  python main.py experiment=pydoc_mdlm                        train a small model, no download
  python main.py mode=ppl_eval eval.checkpoint_path=F ...     perplexity of a checkpoint
  python main.py mode=sample_eval eval.checkpoint_path=F sampling.steps=8,64 ...

--cfg job shows the composed configuration, --multirun optim.lr=1e-3,3e-4 name=... runs one job per value."""


def help_text() -> str:
    """Usage, the groups with their choices, every key with its default and meaning."""
    lines = [HEADER, "", "Groups (group=choice):"]
    lines += [f"  {group:13} {', '.join(choices)}" for group, choices in groups().items()]
    lines += ["", "Keys (key=default: meaning):"]
    for name, declared in all_keys().items():
        default, limits = declared[0].default, declared[0].limits
        shown = {None: "null", "???": "", (): "[]"}.get(default, default)
        allowed = f" ({', '.join(map(str, limits.choices))})" if limits.choices else ""
        lines.append(f"  {name}={shown}: {limits.help}{allowed}")
    return "\n".join(lines)
