"""Look up and compose the options of config groups: the built-in options, and the user's if Hydra is initialized."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xlstm_hydra._hooks import hooks
from xlstm_hydra.conf_dir import conf_dir, current_option
from xlstm_hydra.configs import DeviceConfig, PlanTaskConfig
from xlstm_hydra.configs.device import DEFAULT_DEVICE
from xlstm_hydra.problems import ConfigError, Problem, near_name, nearest

from ._hydra_part import ENGINES
from ._omegaconf import REFUSED
from ._quote import as_override

Sources = tuple[tuple[str, str], ...]

_SCHEMAS = ("schema", "structured://")

GROUP = "device"


def sources() -> Sources:
    """Return Hydra's config sources as (provider, path), in search order.

    They are the sources of the current job, including `hydra.searchpath`, unless Hydra has been initialized with other
    sources since the job started. If Hydra is not initialized, they are the built-in sources.
    """
    ours = (("hydra", "pkg://hydra.conf"), ("xlstm-hydra", f"xlstm://{conf_dir()}"))
    up, of_job = (), ()
    if GlobalHydra.instance().is_initialized():
        up = _paths(GlobalHydra.instance().config_loader())
    if HydraConfig.initialized():
        found = HydraConfig.get().runtime.config_sources
        of_job = tuple((item.provider, f"{item.schema}://{item.path}") for item in found if item.path)
    chosen = of_job if set(up) <= set(of_job) else up
    return (*(chosen or ours), _SCHEMAS)


@cache
def loader(searched: Sources) -> ConfigLoaderImpl:
    """Return a Hydra config loader that searches these sources."""
    Plugins.instance()  # registers the URL schemes of the sources
    search_path = ConfigSearchPathImpl()
    for provider, path in searched:
        search_path.append(provider, path)
    return ConfigLoaderImpl(search_path)


def compose_options(searched: Sources, group: str, names: tuple[str, ...]) -> list[DictConfig]:
    """Return the composed node of each option. All options are composed at once, because each composition takes 0.1 s,
    plus 0.02 s per option."""
    keys = [f"{group}.{number}" for number in range(len(names))]
    chosen = [as_override(f"+{group}@{key}", name) for key, name in zip(keys, names, strict=True)]
    cfg = loader(searched).load_configuration(None, chosen, RunMode.RUN)
    return list(cfg[group].values())


def options_with(group: str, key: str, config_loader: ConfigLoader | None = None) -> list[str]:
    """Return the options of a group that have a key, each as an override such as `data=text`.

    Args:
        group: name of the group.
        key: key to look for.
        config_loader: Hydra's config loader. None: Hydra is already initialized.
    """
    keys_of = _option_keys(_sources_of(config_loader), group)
    return [f"{group}={name}" for name, keys in keys_of.items() if key in keys]


def options_near(
    group: str, key: str, config_loader: ConfigLoader | None, cutoff: float
) -> tuple[str, list[str]] | None:
    """Return the most similar key in the options of a group, and the options that have this key; None if no key is
    similar.

    Args:
        group: name of the group.
        key: key to compare with.
        config_loader: Hydra's config loader. None: Hydra is already initialized.
        cutoff: minimum similarity, from 0 to 1.
    """
    keys = {key for keys in _option_keys(_sources_of(config_loader), group).values() for key in keys if key[0] != "_"}
    near = near_name(key, sorted(keys), cutoff=cutoff)
    return None if near is None else (near, options_with(group, near, config_loader))


def _sources_of(config_loader: ConfigLoader | None) -> Sources:
    return sources() if config_loader is None else (*_paths(config_loader), _SCHEMAS)


def _paths(config_loader: ConfigLoader) -> Sources:
    return tuple((item.provider, item.full_path()) for item in config_loader.get_sources() if item.path)


@cache
def _option_keys(searched: Sources, group: str) -> dict[str, frozenset[str]]:
    names = tuple(loader(searched).get_group_options(group))
    found = _keys(searched, group, names)
    if found is None:  # one of the options cannot be composed
        found = [keys for name in names for keys in _keys(searched, group, (name,)) or [frozenset()]]
    return dict(zip(names, found, strict=True))


def _keys(searched: Sources, group: str, names: tuple[str, ...]) -> list[frozenset[str]] | None:
    try:
        nodes = compose_options(searched, group, names)
    except (HydraException, OmegaConfBaseException, YAMLError):
        return None
    return [frozenset(map(str, node)) if isinstance(node, DictConfig) else frozenset() for node in nodes]


def no_such_option(key: str, name: Any, options: Iterable[str]) -> Problem:
    """Return the `Problem` for an option that does not exist.

    Args:
        key: group, or key that names the option.
        name: the option.
        options: existing options of the group.
    """
    options = sorted({*options, *ENGINES.get(str(key), ())})
    hint = nearest(str(name), options)
    listing = hint if hint.startswith(("Known", "There")) else f"{hint} Known: {', '.join(options)}."
    return Problem({key: name}, "no such option", listing)


def load_device(name: str = DEFAULT_DEVICE, key: str = GROUP) -> DeviceConfig:
    """Return the config of an option of the group `device`: a built-in option, or the user's own if Hydra is
    initialized.

    Args:
        name: name of the option, such as h100_80gb.
        key: key whose value is `name`, for messages.

    Raises:
        ConfigError: the option does not exist, or its values break a rule.
    """
    searched = sources()
    options = loader(searched).get_group_options(GROUP)
    if name not in options:
        name = current_option(f"{GROUP}/{name}").removeprefix(f"{GROUP}/")
    if name not in options:
        raise ConfigError([no_such_option(key, name, options)])
    try:
        [values] = _load(searched, (name,))
    except REFUSED as error:
        raise ConfigError([Problem({key: name}, f"the file of this option cannot be read: {_reason(error)}")]) from None
    return _checked(values)


def _reason(error: Exception) -> str:
    """Return Hydra's error message about a file, followed by the message of its cause, in one line."""
    texts = [" ".join(str(each).split("\n    full_key")[0].split()) for each in (error, error.__cause__) if each]
    return " ".join(texts)


def _checked(values: dict[str, Any]) -> DeviceConfig:
    try:
        return DeviceConfig.from_dict(DeviceConfig, values, ignore_extensive_attributes=False)
    except ConfigError as error:
        raise ConfigError(problem.at(GROUP) for problem in error.problems) from None


def planned_device(task: Any, given: DeviceConfig | None, problems: list[Problem]) -> DeviceConfig | None:
    """Return the device of a run: for a plan, `task.device` if it is set; otherwise the group `device`. A plan with
    neither uses the default device. Problems are appended to `problems`.

    Args:
        task: config of the task.
        given: config of the group `device`, if set.
        problems: list to append to.
    """
    if not isinstance(task, PlanTaskConfig) or (task.device is None and given is not None):
        return given
    try:
        named = load_device(DEFAULT_DEVICE if task.device is None else task.device, "task.device")
    except ConfigError as error:
        problems.extend(error.problems)
        return given
    if given is not None and given != named:
        both = {"task.device": task.device, "device.name": given.name}
        problems.append(Problem(both, "a plan is for a single kind of device", "Remove task.device."))
    return named


def known_devices() -> dict[str, DeviceConfig]:
    """Return the config of every option of the group `device`, by name. Options that are not devices are skipped,
    because the group may have a different meaning in other apps."""
    searched = sources()
    names = tuple(loader(searched).get_group_options(GROUP))
    try:
        return {name: _checked(values) for name, values in zip(names, _load(searched, names), strict=True)}
    except REFUSED:
        return {name: device for name in names if (device := _device_or_none(name)) is not None}


def _device_or_none(name: str) -> DeviceConfig | None:
    try:
        return load_device(name)
    except REFUSED:
        return None


@cache
def _load(searched: Sources, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the values of options of the group `device`, as plain data."""
    nodes: Any = [OmegaConf.to_container(node, resolve=True) for node in compose_options(searched, GROUP, names)]
    return nodes


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _chooses_device() -> bool:
    """True if an option of the group `device` is selected, or if the config was not composed by Hydra."""
    return not HydraConfig.initialized() or HydraConfig.get().runtime.choices.get(GROUP) is not None


hooks.known_devices, hooks.in_sweep, hooks.chooses_device = known_devices, _in_sweep, _chooses_device
