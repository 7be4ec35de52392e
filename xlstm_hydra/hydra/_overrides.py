"""Search for the shortest command line that composes to a given config.

A recipe is an option of `experiment` or `debug`, which selects options of other groups and sets their values.
"""

from __future__ import annotations

import copy
import itertools
import math
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.default_element import GroupDefault
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from xlstm_hydra.codec import dotted
from xlstm_hydra.configs import ConfigDict, ModelConfig, PlanTaskConfig, RunConfig
from xlstm_hydra.runs import Record, without_unused

from ._quote import as_override, literal
from ._read import to_plain
from ._resolvers import register_resolvers

_RECIPES = ("experiment", "debug")
"""Groups of recipes, in the order in which `conf/config.yaml` applies them."""

_UNSEEN = ("_target_", "parallel", "_checkpoint_")
"""Keys of the `model` node that are not compared, because they follow from other keys."""


def shortest_overrides(config: RunConfig | Record) -> list[str]:
    """Return the shortest list of overrides with which `conf/config.yaml` composes to `config`.

    For a `Record`, only the recorded groups are set, and values without effect are omitted.
    """
    groups = config.groups() if isinstance(config, RunConfig) else without_unused(config.groups)[0]
    plain = {name: _plain_group(group) for name, group in groups.items()}
    search = _Search(plain)
    found = (search.overrides(recipes) for recipes in _options().recipes)
    return _shortest([overrides for overrides in found if overrides is not None])


def shortest_layout(run: RunConfig) -> list[str]:
    """Return the shortest list of overrides for the layout of a run: `parallel=OPTION`, then fields of `parallel`."""
    groups = {name: _plain_group(group) for name, group in run.groups().items() if name in ("parallel", "model")}
    found = _Search(groups).group("parallel", ())
    assert found is not None, "every layout follows from any option by setting its fields"
    default = f"parallel={_options().defaults['parallel']}"
    return found if found[:1] and found[0].startswith("parallel=") else [default, *found]


def _shortest(found: list[list[str]]) -> list[str]:
    return min(found, key=lambda overrides: len(shlex.join(overrides)))


def _plain_group(config: ConfigDict) -> dict[str, Any]:
    """Return the values that the composed node of a group must have to match `config`."""
    if not isinstance(config, ModelConfig):
        return config.to_dict()
    own = config.model_config
    named = {"model_class": config.class_path(), "config_class": None if own is None else dotted(type(own))}
    return named | ({} if own is None else own.to_dict())


class _Recipe(NamedTuple):
    """An option of `experiment` or `debug`."""

    override: str
    choices: dict[str, str]
    """Options that the recipe selects, by group."""
    values: dict[str, Any]
    """Values that the recipe sets, by group."""


class _Options(NamedTuple):
    """All options in `conf/`."""

    nodes: Mapping[str, Mapping[str, DictConfig]]
    """Composed node of every option, by group and option."""
    defaults: Mapping[str, str | None]
    """Default option of each group. None: no default."""
    recipes: tuple[tuple[_Recipe, ...], ...]
    """Combinations of recipes to try, each with at most one recipe per group. Later recipes override earlier ones."""


@cache
def _options() -> _Options:
    """Compose all options at once, each in its own package."""
    register_resolvers()
    loader = ConfigLoaderImpl(create_automatic_config_search_path(__file__, None, None))
    primary = loader.repository.load_config("config")
    assert primary is not None
    chosen = {str(item.group): item.value for item in primary.defaults_list or () if isinstance(item, GroupDefault)}
    groups = {"parallel", *RunConfig.__dataclass_fields__}
    single = {group: value for group, value in chosen.items() if not isinstance(value, list)}
    defaults = {group: value for group, value in single.items() if group in groups}
    pairs = [(group, name) for group in defaults for name in loader.get_group_options(group)]
    cfg = loader.load_configuration(None, [f"+{group}@{group}.{name}={name}" for group, name in pairs], RunMode.RUN)
    nodes: dict[str, dict[str, DictConfig]] = {group: {} for group in defaults}
    for group, name in pairs:
        nodes[group][name] = cfg[group][name]
        nodes[group][name]._set_parent(None)  # interpolations are resolved later, in the config it is inserted into
    kinds = ([_recipe(loader, group, name) for name in loader.get_group_options(group)] for group in _RECIPES)
    tried = itertools.product(*([None, *recipes] for recipes in kinds))
    return _Options(nodes, defaults, tuple(tuple(recipe for recipe in chosen if recipe) for chosen in tried))


def _recipe(loader: ConfigLoaderImpl, group: str, name: str) -> _Recipe:
    found = loader.repository.load_config(f"{group}/{name}")
    assert found is not None and isinstance(found.config, DictConfig)
    items = [item for item in found.defaults_list or () if isinstance(item, GroupDefault) and item.override]
    choices = {str(item.group).removeprefix("/"): str(item.value) for item in items}
    return _Recipe(f"{group}={name}", choices, {str(key): found.config[key] for key in found.config})


@cache
def _candidate(group: str, name: str, recipes: tuple[str, ...]) -> DictConfig | None:
    """Return the node of an option with the values set by recipes; None if the recipes set a field that the option does
    not have.

    Args:
        group: group of the option.
        name: name of the option.
        recipes: overrides of the recipes, in the order in which they are applied.
    """
    node = copy.deepcopy(_options().nodes[group][name])
    OmegaConf.set_struct(node, False)
    known = {recipe.override: recipe for chosen in _options().recipes for recipe in chosen}
    try:
        return cast(DictConfig, OmegaConf.merge(node, *(known[text].values[group] for text in recipes)))
    except ConfigKeyError:
        return None


class _Search:
    """Searches for the shortest overrides, one group at a time. Groups are independent, except that layouts depend on
    the classes of the model's blocks, which are known in advance."""

    def __init__(self, wanted: Mapping[str, dict[str, Any]]) -> None:
        self.wanted = wanted
        self._found: dict[Any, list[str] | None] = {}

    def overrides(self, recipes: tuple[_Recipe, ...]) -> list[str] | None:
        """Return the shortest overrides of all groups that include these recipes; None if no overrides can produce the
        wanted config with them."""
        touched = {group for recipe in recipes for group in (*recipe.choices, *recipe.values)}
        if touched & _options().nodes.keys() - self.wanted.keys():
            return None  # a recipe would set a group that was not recorded
        texts = [recipe.override for recipe in recipes]
        for group in _options().nodes:
            if group in self.wanted:
                if (found := self.group(group, recipes)) is None:
                    return None
                texts += found
        return texts

    def group(self, group: str, recipes: tuple[_Recipe, ...]) -> list[str] | None:
        """Return the shortest overrides of one group, in addition to these recipes; None if no overrides can produce
        the wanted values."""
        chosen = [recipe.choices[group] for recipe in recipes if group in recipe.choices]
        default = [_options().defaults[group], *chosen][-1]
        setting = tuple(recipe.override for recipe in recipes if group in recipe.values)
        found = []
        for name in _options().nodes[group]:
            if (group, name, setting) not in self._found:
                self._found[group, name, setting] = self._values(group, _candidate(group, name, setting))
            if (values := self._found[group, name, setting]) is not None:
                found.append([*([] if name == default else [f"{group}={name}"]), *values])
        return _shortest(found) if found else None

    def _values(self, group: str, node: DictConfig | None) -> list[str] | None:
        """Return the overrides that give an option's node the wanted values; None if the node has a field that is not
        wanted."""
        if node is None or node.keys() - self.wanted[group].keys() - set(_UNSEEN):
            return None
        wanted, given = self.wanted[group], self._resolved(group, node)
        explicit = (
            ["batch_size"] if group == "trainer" and self._is_plan() else []
        )  # its default depends on all other values
        changes = [key for key in wanted if key not in given or given[key] != wanted[key] or key in explicit]
        open_keys = [key for key in changes if key in node.keys() and OmegaConf.is_interpolation(node, key)]
        for key in [key for key in open_keys if key not in explicit]:
            fewer = [other for other in changes if other != key]  # the interpolation may resolve to the wanted value
            if self._resolved(group, self._changed(group, node, fewer)) == wanted:
                changes = fewer
        return [as_override(f"{'' if key in node.keys() else '+'}{group}.{key}", wanted[key]) for key in changes]

    def _is_plan(self) -> bool:
        return self.wanted.get("task", {}).get("name") == PlanTaskConfig.name

    def _changed(self, group: str, node: Any, keys: list[str]) -> DictConfig:
        changed = copy.deepcopy(node)
        for key in keys:
            changed[key] = literal(self.wanted[group][key])
        return changed

    def _resolved(self, group: str, node: Any) -> dict[str, Any]:
        """Return a node as plain data. Interpolations of a layout are resolved with the wanted model."""
        beside = {"model": self.wanted.get("model", {})} if group == "parallel" else {}
        plain = to_plain(OmegaConf.create(beside | {group: node})[group], [])
        return {key: _finite(value) for key, value in plain.items() if group != "model" or key not in _UNSEEN}


def _finite(value: Any) -> Any:
    """Return NaN and infinities as strings, as saved configs store them, and any other value unchanged."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
