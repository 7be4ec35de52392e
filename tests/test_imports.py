"""Who may import whom, and what stays asleep until a config is known to be good."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import xlstm_hydra
import xlstm_hydra.hydra

ROOT = Path(xlstm_hydra.__file__).parent
PLUGIN = ROOT.parent / "hydra_plugins"
ROWS: list[dict[str, set[str]]] = [
    {"": set(), "conf_dir": set(), "_printable": set(), "_colours": set(), "synonyms": set(), "_logging": set()},
    {"problems": set(), "_table": {"rich"}, "_status": set()},
    {"errors": set(), "preemption": set(), "own_modules": set(), "streams": set()},
    {"codec": set()},
    {"formats": set()},
    {"configs": set()},
    {"reference": {"yaml"}},
    {"runs": {"etils", "xxhash", "yaml"}, "_hooks": set()},
    {"metadata": set(), "_jax_internals": {"jax"}},
    {"devices": {"jax", "yaml"}},
    {"parallel": {"jax", "numpy"}},
    {
        "models": {"jax", "numpy", "flax"},
        "optim": {"jax", "numpy", "optax"},
        "data": {"jax", "numpy", "grain"},
    },
    {"step": {"jax", "numpy", "flax", "optax"}},
    {"checkpoint": {"jax", "numpy", "flax", "orbax", "etils"}},
    {"plan": {"jax", "numpy", "flax", "optax"}},
    {"train": {"jax", "numpy", "flax", "optax", "grain", "rich", "tensorboardX"}},
    {"inference": {"jax", "numpy", "flax"}},
    {"tasks": set()},
    {"hydra": {"hydra", "omegaconf", "yaml"}},
    {"sweep": {"hydra", "omegaconf", "rich", "matplotlib", "optuna", "sqlalchemy", "submitit"}},
    {"cli": {"hydra", "omegaconf", "rich", "yaml"}, "hydra_plugins": {"hydra", "omegaconf"}},
    {"__main__": set()},
]
"""The parts of the package, from the bottom up, each with what it may import from elsewhere than the standard library.
A part imports only parts of the rows above its own in this list."""
EXCEPTIONS = {("", "checkpoint")}
"""`xlstm_hydra.load_checkpoint` is a published interface."""
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "rich", "tensorboardX", "matplotlib")
FILES = [*ROOT.rglob("*.py"), *PLUGIN.rglob("*.py")]


def module_of(file: Path) -> str:
    """The dotted name of a file, with `xlstm_hydra.` left out."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    names = [part for part in parts if part != "__init__"]
    return ".".join(names[1:] if names[0] == "xlstm_hydra" else names)


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in it; relative names are made whole with its package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def part_of(name: str) -> str:
    """`configs` of `configs.model`; nothing for what the package itself defines, such as `__version__`."""
    part = name.partition(".")[0]
    return part if part == "__main__" or any(part in row for row in ROWS) else "" if part.startswith("__") else part


def forbidden(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module imports and may not."""
    part = part_of(module)
    row = next((number for number, parts in enumerate(ROWS) if part in parts), None)
    if row is None:
        return [f"{module} is in no row"]
    above = {name for parts in ROWS[:row] for name in parts} | {part}
    whole = f"xlstm_hydra.{module}" if part != "hydra_plugins" else module
    found = []
    for name in imported(source, whole if is_package else whole.rpartition(".")[0]):
        first, _, rest = name.partition(".")
        if first == "xlstm_hydra":
            if part_of(rest) not in above and (module, part_of(rest)) not in EXCEPTIONS:
                found.append(name)
        elif first not in {*sys.stdlib_module_names, "hydra_plugins", *ROWS[row][part]}:
            found.append(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_imports_only_what_its_row_may(file):
    assert forbidden(module_of(file), file.read_text(encoding="utf-8"), file.name == "__init__.py") == []


WRONG = [
    ("configs._base", "import jax", "jax"),
    ("configs.run", "import omegaconf", "omegaconf"),
    ("configs.data", "from xlstm_hydra.metadata import read_model", "xlstm_hydra.metadata.read_model"),
    ("configs.run", "from ..hydra import load", "xlstm_hydra.hydra.load"),
    ("hydra._load", "def f():\n    from xlstm_hydra.sweep import run_sweep", "xlstm_hydra.sweep.run_sweep"),
    ("train._loop", "import xlstm_hydra.hydra", "xlstm_hydra.hydra"),
    ("metadata._places", "from xlstm_hydra import hydra", "xlstm_hydra.hydra"),
    ("metadata._format", "import numpy as np", "numpy"),
    ("parallel._mesh", "from flax import linen", "flax.linen"),
    ("models._lm", "from xlstm_hydra import data", "xlstm_hydra.data"),
    ("optim", "from .checkpoint import restore", "xlstm_hydra.checkpoint.restore"),
    ("checkpoint", "from xlstm_hydra.train._loop import train", "xlstm_hydra.train._loop.train"),
    ("train._loop", "import torch", "torch"),
    ("train._program", "from xlstm_hydra.inference import evaluate", "xlstm_hydra.inference.evaluate"),
    ("hydra_plugins.xlstm_hydra_plugin.sweeper", "if True:\n    import jax.numpy", "jax.numpy"),
]


@pytest.mark.parametrize(("module", "source", "name"), WRONG, ids=[f"{module}: {name}" for module, _, name in WRONG])
def test_the_test_above_sees_an_import_that_its_row_may_not_have(module, source, name):
    assert forbidden(module, source) == [name]


def test_the_test_above_sees_a_module_that_belongs_to_no_row():
    assert forbidden("utils", "") == ["utils is in no row"]


def loaded(code: str, folder: Path, **environment: str) -> tuple[set[str], str]:
    """The heavy packages that a program loads, and what it printed."""
    report = f"print('LOADED', *(set({HEAVY}) & set(sys.modules)))"
    program = f"import atexit, sys\natexit.register(lambda: {report})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    text, _, names = done.stdout.rpartition("LOADED")
    return set(names.split()), text + done.stderr


def command(*arguments: str) -> str:
    """A program that is the command with those arguments."""
    return f"import sys\nsys.argv = {['xlstm-hydra', *arguments]}\nfrom xlstm_hydra.__main__ import main\nmain()"


@pytest.mark.parametrize("module", ["", ".configs", ".hydra", ".sweep", ".metadata", ".cli"])
def test_importing_what_needs_no_device_loads_no_jax(tmp_path, module):
    assert loaded(f"import xlstm_hydra{module}", tmp_path)[0] == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "Groups and their options"),
        (["--cfg", "job"], "embedding_dim: 128"),
        (["--info", "searchpath"], "xlstm-hydra"),
        (["--info", "parallel.fsdp_axis_size"], "fsdp_tp"),
        (["--info", "model"], "mlstm_v1_7b"),
        (["--info", "paralel"], "Did you mean"),
        (["--schema"], "parallel.json"),
        (["-sc", "query=bash"], "parallel=fsdp_tp"),
        (["parallel=fsdpp"], "no such option"),
        (["--from", "nowhere"], "no checkpoints in"),
        (["optimizer.lr=-1"], "must be 0 or more"),
        (["trainer.simulated_devices=3"], "the batch size must be a multiple"),
        (["task=plan", "task.device=h100"], "no such option"),
        (["model.num_heads=3"], "must divide"),
        (["data=text"], "data.path: missing"),
        (["-m", "parallel=dp,fsdpp"], "no such option"),
        (["-m", "optimizer.lr=1,-1"], "must be 0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_starts_no_run_loads_no_jax(tmp_path, arguments, words):
    line = "xlstm-hydra parallel="
    heavy, text = loaded(command(*arguments), tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert words in text and heavy == set()


def test_the_test_above_sees_a_package_that_is_loaded(tmp_path):
    assert "numpy" in loaded("import numpy", tmp_path)[0]


def test_each_name_that_a_type_checker_sees_in_the_package_hydra_is_there():
    tree = ast.parse((ROOT / "hydra" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert len(imports) > 40
    for node in imports:
        module, name = import_module(f".{node.module}", "xlstm_hydra.hydra"), node.names[0].name
        assert getattr(xlstm_hydra.hydra, name) is getattr(module, name)


EDGE = {"hydra", "omegaconf"}
"""Loaded by nothing below the package `hydra`."""


@pytest.mark.parametrize(
    "module", ["", ".configs", ".reference", ".formats", ".runs", ".metadata", ".plan", ".train", ".tasks"]
)
def test_importing_what_is_below_the_edge_loads_no_hydra(tmp_path, module):
    code = f"import sys, xlstm_hydra{module}\nprint('EDGE', *({EDGE} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["EDGE"], "")


def test_the_test_above_sees_hydra_when_it_is_loaded(tmp_path):
    code = f"import sys\nfrom xlstm_hydra.hydra import load\nprint(*({EDGE} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == EDGE
