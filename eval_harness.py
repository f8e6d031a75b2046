"""Tasks of lm-eval for every algorithm: ``python eval_harness.py --model CHECKPOINT --tasks a,b``.

lm-eval (pip install lm-eval) is imported when it is used. docs/harness.md says what is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api import Model, load
from data.decoding import decode
from errors import ABSENT, UserError
from evaluation.conditional import Likelihood, redrawn
from evaluation.estimates import mean, student
from tasks.likelihoods import Row, row_likelihoods
from tasks.prompts import encode
from utils import get_logger, printable, setup_logging, write_json

log = get_logger("harness")
REDRAWS = 100  # of the bound's draws, for the part of an accuracy's error that they are
ROLLING = "rolling"


class Answers:
    """What lm-eval asks of a model, computed by it; nothing here knows lm-eval but by the names of requests.

    Args:
        draws: of a bound, an even number.
        steps: network calls of generated texts; None: one a token.
        seed: of the draws. Each document has its own, the choices of one document share theirs.

    Attributes:
        likelihoods: by (task, document) those of its requests, in their order, and whether each is greedy.
        nfe: network calls of every generated text.
    """

    def __init__(self, model: Model, *, draws: int = 64, steps: int | None = None, seed: int = 1) -> None:
        self.model, self.module, self.tokenizer = model, model.module, model.tokenizer
        self.draws, self.seed = draws, seed
        self.steps = steps or self.module.config.model.length
        self.likelihoods: dict[tuple[str, int], list[tuple[Likelihood, bool]]] = defaultdict(list)
        self.nfe: list[float] = []

    # Likelihoods ----------------------------------------------------------------------------------

    def document(self, task: str, number: int, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """log p(continuation | context) in nats and whether it is what greedy decoding writes, for all
        requests of one document, by one way and with the same draws."""
        rows = [self.row(context, continuation) for context, continuation in pairs]
        seed = self.seed + 7919 * (number + 1)
        found = row_likelihoods(self.module, rows, draws=self.draws, seed=seed)
        both = [(one, self.is_greedy(*row)) for one, row in zip(found, rows, strict=True)]
        self.likelihoods[task, number] = both
        return [(-one.nll, greedy) for one, greedy in both]

    def row(self, context: str, continuation: str) -> Row:
        """bos, context and continuation as one row, the continuation open; what is too long is cut on the
        left. Blanks at the end of the context belong to the continuation, and the border is where the
        context's own tokens end, as lm-eval has it."""
        stripped = context.rstrip(" ")
        continuation, context = context[len(stripped) :] + continuation, stripped
        whole = self.encode(context + continuation)
        border = min(len(self.encode(context)), len(whole) - 1) if context else 0
        start, room = self.start(), self.module.config.model.length
        if len(whole) - border > room - len(start):
            problem = f"has {len(whole) - border} tokens"
            raise UserError("continuation", continuation, problem, f"model.length={room} is all there is")
        left = max(0, len(start) + len(whole) - room)
        ids = [*start, *whole[left:]]
        is_open = [at >= len(start) + border - left for at in range(len(ids))]
        device = self.module.device
        return torch.tensor(ids, device=device), torch.tensor(is_open, device=device)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos."""
        return encode(self.tokenizer, text, "text", text[:40]) if text else []

    def start(self) -> list[int]:
        """What stands in front of every row."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    @torch.no_grad()
    def is_greedy(self, ids: Tensor, is_open: Tensor) -> bool:
        """Whether the open tokens are the likeliest ones, each given all to its left; uniform-state models,
        which have no such order, are never greedy."""
        module, where = self.module, is_open.nonzero().squeeze(1)
        family = module.objective.settings.family
        if family == "uniform":
            return False
        with module.ema_weights():
            if family == "autoregressive":
                seen = module.objective.with_start(ids[None])
                prediction = module.objective.next_token(module.backbone, seen[:, :-1])
                at = where - (len(ids) - (seen.shape[1] - 1))
                return bool((prediction.at(at).argmax(-1) == ids[where]).all())
            for number, position in enumerate(where):  # stops at the first that is not
                xt = ids[None].clone()
                xt[0, where[number:]] = module.mask_id
                sigma = torch.ones(1, device=ids.device)
                seeds = module.objective.draw_seeds(torch.tensor([self.seed], device=ids.device), len(ids))
                prediction = module.denoiser.denoise(xt, sigma, seeds)
                if int(prediction.at(position[None]).argmax(-1)) != int(ids[position]):
                    return False
        return True

    def rolling(self, text: str, number: int) -> float:
        """log p(text) in nats, in windows of model.length tokens without overlap, bos in front of each."""
        ids, start = self.encode(text), self.start()
        size, rows = self.module.config.model.length - len(start), []
        for at in range(0, len(ids), size):
            row = torch.tensor([*start, *ids[at : at + size]], device=self.module.device)
            rows.append((row, torch.arange(len(row), device=row.device) >= len(start)))
        found = row_likelihoods(self.module, rows, draws=self.draws, seed=self.seed, exact=self._exact())
        self.likelihoods[ROLLING, number] = [(one, False) for one in found]
        return -sum(one.nll for one in found)

    def _exact(self) -> bool:
        return self.module.objective.settings.exact_likelihood

    # Texts ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, context: str, until: Sequence[str], max_tokens: int) -> str:
        """What the model writes behind ``context``, up to the first of ``until`` or ``max_tokens`` tokens.
        The whole row of model.length is written; a long context is cut on the left."""
        module, length = self.module, self.module.config.model.length
        wanted = min(max_tokens, length - len(self.start()) - 1)
        ids = self.encode(context.rstrip(" "))[-(length - wanted - len(self.start())) :]
        given = module.generator.prior(1).cpu()
        front = [*self.start(), *ids]
        given[0, : len(front)] = torch.tensor(front)
        with module.ema_weights():
            made = module.generator.sample(
                1, self.steps, first_row=len(self.nfe), batch_size=1, given=given, start_seed=None
            )
        self.nfe.append(float(made.nfe[0]))
        kept = made.tokens[0, len(front) : len(front) + wanted].cpu()
        (text,) = decode(self.tokenizer, [kept], module.config.eval.decoding)
        ends = [*until, *filter(None, (self.tokenizer.eos_token,))]
        return text[: min((text.find(end) for end in ends if end and end in text), default=len(text))]

    # What was done --------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """How the numbers were made: kinds of likelihoods, their errors, sampler and network calls."""
        found = [one for both in self.likelihoods.values() for one, _ in both]
        return {
            "likelihoods": dict(Counter(one.kind for one in found)),
            "draws": self.draws,
            "mean_stderr": float(np.mean([one.stderr for one in found])) if found else None,
            "seed": self.seed,
            "predictor": self.module.generator.sampler_class.name,
            "steps": self.steps,
            "nfe": float(np.mean(self.nfe)) if self.nfe else None,
            "precision": str(self.module.backbone.precision),
        }


def language_model(answers: Answers) -> Any:
    """An ``lm_eval.api.model.LM`` that passes its requests on to ``answers``.

    Raises:
        UserError: lm-eval is not installed.
    """
    lm_eval_model = _lm_eval("lm_eval.api.model")

    class HarnessModel(lm_eval_model.LM):  # type: ignore[misc,name-defined]
        """Requests of lm-eval, grouped by document."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            groups: dict[tuple[str, int], list[int]] = defaultdict(list)
            for at, request in enumerate(requests):
                groups[str(request.task_name), int(request.doc_id)].append(at)
            found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            for (task, number), members in groups.items():
                pairs = [tuple(requests[at].args) for at in members]
                for at, one in zip(members, answers.document(task, number, pairs), strict=True):
                    found[at] = one
            return found

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [answers.rolling(request.args[0], at) for at, request in enumerate(requests)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [self._generated(*request.args) for request in requests]

        def _generated(self, context: str, settings: dict[str, Any]) -> str:
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else until
            return answers.generate(context, until, int(settings.get("max_gen_toks", 256)))

    return HarnessModel()


def _lm_eval(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "install it: pip install lm-eval"
        raise UserError("lm-eval", ABSENT, f"cannot be imported ({error})", hint) from error


def accuracy_intervals(
    samples: dict[str, list[dict[str, Any]]], answers: Answers, tasks: dict[str, Any]
) -> Any:
    """Mean, standard error and 95 % interval of every number that lm-eval gives for single documents.

    The standard error is that over documents and that of the bound's draws together: the second is the
    deviation of the mean when all bounds are drawn anew (``evaluation.conditional.redrawn``) and the task
    decides again.
    """
    found: dict[str, Any] = {}
    for name, documents in samples.items():
        numbers = [key for key, value in documents[0].items() if key in documents[0].get("metrics", ()) and
                   isinstance(value, int | float)]  # fmt: skip
        spread = _draw_spread(documents, answers, tasks.get(name), name)
        for metric in numbers:
            value = mean(np.array([float(document[metric]) for document in documents]))
            draws = spread.get(metric, 0.0)
            total = float(np.hypot(value.stderr or 0.0, draws))
            found.setdefault(name, {})[metric] = {
                "value": value.value,
                "stderr": total,
                "stderr_of_documents": value.stderr,
                "stderr_of_draws": draws,
                "interval": interval(value.value, total, len(documents)),
                "documents": len(documents),
            }
    return found


def interval(value: float, stderr: float, number: int) -> list[float]:
    """The 95 % interval of a mean of ``number`` documents; of a share Wilson's, which is no point at 0 and 1,
    with as many documents as the standard error speaks of."""
    room = student(max(number - 1, 4))
    if not 0 <= value <= 1:
        return [value - room * stderr, value + room * stderr]
    effective = value * (1 - value) / stderr**2 if stderr and 0 < value < 1 else number
    square = room**2 / max(effective, 1.0)
    middle = (value + square / 2) / (1 + square)
    half = (
        room
        * (value * (1 - value) / max(effective, 1.0) + square / 4 / max(effective, 1.0)) ** 0.5
        / (1 + square)
    )
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _draw_spread(documents: list[dict[str, Any]], answers: Answers, task: Any, name: str) -> dict[str, float]:
    """Deviation of every metric's mean over new draws; nothing where no likelihood was drawn."""
    known = {number: both for (of, number), both in answers.likelihoods.items() if of == name}
    if task is None or not any(one.draws is not None for both in known.values() for one, _ in both):
        return {}
    generator, means = torch.Generator().manual_seed(answers.seed), defaultdict(list)
    for _ in range(REDRAWS):
        found = defaultdict(list)
        for document in documents:
            both = known.get(document["doc_id"])
            if both is None:
                return {}
            values = redrawn([one for one, _ in both], generator)
            results = [(-value, greedy) for value, (_, greedy) in zip(values, both, strict=True)]
            for metric, value in task.process_results(document["doc"], results).items():
                if isinstance(value, int | float):
                    found[metric].append(float(value))
        for metric, each in found.items():
            means[metric].append(np.mean(each))
    return {metric: float(np.std(each, ddof=1)) for metric, each in means.items()}


def _flat_tasks(tasks: dict[Any, Any]) -> dict[str, Any]:
    """Tasks by name, those inside groups as well."""
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        found |= _flat_tasks(task) if isinstance(task, dict) else {str(name): task}
    return found


def evaluate(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Run the tasks; returns what is written: lm-eval's results, intervals, how they were made."""
    evaluator, tasks = _lm_eval("lm_eval.evaluator"), _lm_eval("lm_eval.tasks")
    answers = Answers(model, draws=options.draws, steps=options.steps, seed=options.seed)
    manager = tasks.TaskManager(include_path=options.include_path)
    names = [name for name in options.tasks.split(",") if name]
    try:
        known = _flat_tasks(tasks.get_task_dict(names, manager))
    except KeyError as error:
        hint = "give names of lm-eval's tasks, or --include_path for your own"
        raise UserError("--tasks", options.tasks, f"no such task ({error})", hint) from error
    found = evaluator.simple_evaluate(
        model=language_model(answers),
        tasks=names,
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    settings = model.module.objective.settings
    return {
        "model": options.model,
        "algo": settings.name,
        "results": found["results"],
        "intervals": accuracy_intervals(found["samples"], answers, known),
        "made_by": answers.report(),
        "versions": {name: version(name) for name in ("lm-eval", "torch", "transformers")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2: a mistake of the user, in one line)."""
    setup_logging()
    options = _options(argv)
    try:
        _lm_eval("lm_eval")
        result = evaluate(load(options.model), options)
    except UserError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    for task, metrics in result["intervals"].items():
        for metric, one in metrics.items():
            low, high = one["interval"]
            print(
                f"{task} {metric}: {one['value']:.4f} ({low:.4f} to {high:.4f}; n {one['documents']}, "
                f"standard error {one['stderr_of_documents'] or 0:.4f} of documents, "
                f"{one['stderr_of_draws']:.4f} of draws)"
            )
    made = result["made_by"]
    print(f"likelihoods: {made['likelihoods']}, {made['draws']} draws; sampler {made['predictor']}, "
          f"{made['steps']} steps, network calls {made['nfe']}")  # fmt: skip
    write_json(options.output_path, result)
    print(f"-> {options.output_path}")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tasks of lm-eval for every algorithm.")
    add = parser.add_argument
    add("--model", required=True, help="a .ckpt of this program, a Hugging Face folder or hub name")
    add("--tasks", required=True, help="names of lm-eval's tasks, a,b")
    add("--include_path", help="folder of task files of your own")
    add("--num_fewshot", type=int, help="examples in front of each question (the task's own)")
    add("--limit", type=float, help="documents of each task (all)")
    add("--draws", type=int, default=64, help="of a bound, an even number (64)")
    add("--steps", type=int, help="network calls of a generated text (one a token)")
    add("--seed", type=int, default=1, help="of the draws (1)")
    add("--output_path", type=Path, default=Path("harness.json"), help="JSON result (harness.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
