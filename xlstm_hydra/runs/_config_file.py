"""The YAML file with the resolved config in a run folder. When the file is edited, all values that are not replaced are
kept as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xlstm_hydra.configs import RunConfig

from ._links import replace_file
from ._paths import known_step, run_of

CONFIG_FILE = "config.yaml"
"""Name of the config file in a run folder."""

_STYLE: dict[str, Any] = {"allow_unicode": True}
_TEXT = "tag:yaml.org,2002:str"
_BOOLS = ("y", "Y", "n", "N")
"""Strings that OmegaConf reads as Booleans, but PyYAML does not."""


def recorded_origin(folder: Path) -> str | None:
    """Return the checkpoint given with `--from`, from which the model of a run was composed. It is returned as RUN@STEP
    if it is in a run folder. None: the model was not composed from a checkpoint."""
    try:
        node = _child(_child(_read(folder / CONFIG_FILE), "model"), "_checkpoint_")
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if node is None or node.tag != _TEXT:
        return None
    path = Path(node.value)
    run, step = run_of(path), known_step(path)
    return node.value if run is None or step is None else f"{run}@{step}"


def write_layout(folder: Path, run: RunConfig) -> None:
    """Write the layout that was chosen for a run to the config file in the run folder, if the file exists."""
    file = folder / CONFIG_FILE
    if not file.exists():
        return
    root = _read(file)
    for parent in (root, _child(root, "model")):
        _set(parent, "parallel", run.parallel.to_dict())
    _set(root, "trainer", run.trainer.to_dict())
    replace_file(file, yaml.serialize(root, Dumper=_Dumper, **_STYLE))


def _read(file: Path) -> yaml.Node | None:
    return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)


def _set(node: yaml.Node | None, key: str, value: Mapping[str, Any]) -> None:
    """Replace the value of a key in place, or add it at the end."""
    assert isinstance(node, yaml.MappingNode), "the file is the config of a run"
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **_STYLE)
    new = yaml.compose(text, Loader=yaml.SafeLoader)
    names = [name.value for name, _ in node.value]
    if key in names:
        number = names.index(key)
        node.value[number] = (node.value[number][0], new)
    else:
        node.value.append((yaml.ScalarNode(_TEXT, key), new))


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes strings which OmegaConf would read as numbers or Booleans, like OmegaConf's own dumper."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(_TEXT, text, style="'" if text in _BOOLS or _is_number(text) else None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _represent_text)
