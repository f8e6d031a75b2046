"""The distributions of the house, checked on every run: who may import whom, and what an import may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "eval_harness": 12,
    "main": 11,
    "api": 11,
    "tasks": 10,
    "callbacks": 9,
    "algo": 8,
    "trainer_base": 7,
    "training": 6,
    "generation": 5,
    "dataloader": 5,
    "eval_mauve": 5,
    "algorithms": 4,
    "samplers": 3,
    "integral": 3,
    "evaluation": 3,
    "diffusion": 2,
    "models": 2,
    "data": 2,
    "metrics": 2,
    "reporting": 2,
    "config": 2,
    "schedulers": 2,
    "muon": 1,
    "optimizers": 2,
    "settings": 1,
    "utils": 1,
    "errors": 0,
}
CONFIG_LIBRARIES = {"omegaconf", "hydra"}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] in {*FLOORS, *(f"{name}.py" for name in FLOORS)}
)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def test_every_python_file_has_a_floor() -> None:
    roots = {path.name.removesuffix(".py") for path in ROOT.glob("*.py")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert roots | packages == set(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    for module in imported_modules(path):
        target = module.split(".")[0]
        if target in FLOORS and target != here:
            assert FLOORS[target] < FLOORS[here], f"{path.name} (floor {FLOORS[here]}) imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_on_their_floors(path: Path) -> None:
    used = {module.split(".")[0] for module in imported_modules(path)}
    if FLOORS[room(path)] < 5 and room(path) != "config":
        assert not used & CONFIG_LIBRARIES, "configuration objects stop at floor 5"
    if room(path) == "diffusion":
        assert used <= {"torch", "diffusion", "errors"} | set(sys.stdlib_module_names), (
            "diffusion/ imports torch alone"
        )
    if room(path) == "algorithms":
        ours = {"algorithms", "diffusion", "samplers", "integral", "settings", "errors"}
        assert used <= ours | {"torch"} | set(sys.stdlib_module_names), (
            "an algorithm is torch and mathematics"
        )
    assert not used & {"flash_attn", "timm", "torchvision", "torchaudio"}


def test_no_import_cycle() -> None:
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES
    }
    graph = {name: {m for m in imported_modules(path) if m in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "multinomial", "bernoulli"}
GLOBAL_SEEDS = {"manual_seed", "seed_everything"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_randomness_enters_as_an_argument(path: Path) -> None:
    """No draw from a global generator; trainer_base alone seeds one, for dropout and start weights."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if owner in {"torch", "random", "np.random", "numpy.random"} and node.func.attr in GLOBAL_DRAWS:
            assert any(keyword.arg == "generator" for keyword in node.keywords), f"{path}:{node.lineno}"
        if node.func.attr in GLOBAL_SEEDS and owner in {"torch", "L", "random", "np.random"}:
            assert room(path) == "trainer_base", f"{path}:{node.lineno} seeds a global generator"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_a_reader(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.lineno} {node.name} is too long"
            if not node.name.startswith("_"):
                arguments = [
                    a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")
                ]
                missing = [a.arg for a in arguments if a.annotation is None]
                assert not missing and (node.returns or node.name == "__init__"), (
                    f"{node.name}: annotate {missing}"
                )


def test_import_does_nothing_but_import(tmp_path: Path) -> None:
    """Importing everything opens no socket, writes no file, seeds nothing, needs no optional package."""
    modules = sorted(
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in SOURCES
    )
    program = (
        "import random, socket, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import lightning, numpy, torch\n"  # Lightning's own import draws from the random module
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "before = (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist())\n"
        f"for name in {modules!r}: __import__(name)\n"
        "after = (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist())\n"
        "assert before == after, 'import changed a global generator'\n"
        "assert not {'flash_attn', 'timm', 'torchvision', 'wandb', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())
