"""The text of ``python main.py --help``: groups and keys as the schema and the yaml files have them."""

from __future__ import annotations

from typing import Any

from config.groups import GROUP_SCHEMAS
from config.keys import Key, all_keys, groups
from config.samplers import declared_samplers

HEADER = """python main.py key=value ...          train, evaluate, sample; e.g.

  python main.py experiment=pydoc_mdlm                        train a small model, no download
  python main.py algo=mdlm mode=ppl_eval eval.checkpoint_path=F ...     perplexity of a checkpoint
  python main.py algo=mdlm mode=sample_eval eval.checkpoint_path=F sampling.steps=8,64 ...

--cfg job shows the composed configuration, --multirun optim.lr=1e-3,3e-4 name=... runs one job per value."""


def help_text() -> str:
    """Usage, the groups with their choices, every key with its default and meaning."""
    lines = [HEADER, "", "Groups (group=choice):"]
    lines += [f"  {group:13} {', '.join(choices)}" for group, choices in groups().items()]
    lines += ["", *_samplers()]
    lines += ["", "Keys (key=default: meaning):"]
    for name, declared in all_keys().items():
        different: dict[tuple[Any, str], Key] = {}
        for one in declared:
            different.setdefault((one.default, one.limits.help), one)
        lines += [_line(name, one, len(different) > 1) for one in different.values()]
    return "\n".join(lines)


def _samplers() -> list[str]:
    """Predictors and orders with what they claim; names that stand for several families of models once."""
    lines = ["Samplers (sampling.predictor=name; exact, in the limit of many steps, or sharpening):"]
    ways = {"exact": "exact", "limit": "in the limit", "sharpens": "sharpens"}
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in declared_samplers():
        for name in one.names if one.order == "random" else (f"order={one.order}",):
            found.setdefault((name, one.claim, ways[one.exact]), []).extend(one.families)
    for (name, claim, way), families in sorted(found.items()):
        lines.append(f"  {name:26} {claim} ({way}; {', '.join(families)})")
    return lines


def _line(name: str, declared: Key, several: bool) -> str:
    """One key; where choices of a group differ about it (``several``), with the choice that means this."""
    limits = declared.limits
    shown = {None: "null", "???": "", (): "[]"}.get(declared.default, declared.default)
    allowed = f" ({', '.join(map(str, limits.choices))})" if limits.choices else ""
    group = name.split(".")[0]
    owners = [n for n, schema in GROUP_SCHEMAS.get(group, {}).items() if schema is declared.owner]
    which = f" [{group}={owners[0]}]" if several and owners and owners[0] != "base" else ""
    return f"  {name}={shown}: {limits.help}{allowed}{which}"
