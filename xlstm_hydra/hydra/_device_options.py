"""The figures of a kind of device by the name of its option, wherever that is found."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from xlstm_hydra._hooks import hooks
from xlstm_hydra.configs import DeviceConfig, PlanTaskConfig
from xlstm_hydra.configs.device import DEFAULT_DEVICE
from xlstm_hydra.problems import ConfigError, Problem

from ._options import Sources, compose_options, loader, sources
from ._refusals import REFUSED, no_such_option

GROUP = "device"


def load_device(name: str = DEFAULT_DEVICE, key: str = GROUP) -> DeviceConfig:
    """The figures of an option of the group `device`: of ours, or of the user's where Hydra is up.

    Args:
        name: of the option, such as h100_80gb.
        key: where it was typed, for messages.

    Raises:
        ConfigError: there is no such option, or its figures break a rule.
    """
    places = sources()
    options = loader(places).get_group_options(GROUP)
    if name not in options:
        raise ConfigError([no_such_option(key, name, options)])
    try:
        [values] = _load(places, (name,))
    except REFUSED as error:
        raise ConfigError([Problem({key: name}, f"its file cannot be read: {_reason(error)}")]) from None
    return _checked(values)


def _reason(error: Exception) -> str:
    """What Hydra says of a file, in one line; what is wrong in it stands in the error that it was raised from."""
    texts = [" ".join(str(each).split("\n    full_key")[0].split()) for each in (error, error.__cause__) if each]
    return " ".join(texts)


def _checked(values: dict[str, Any]) -> DeviceConfig:
    try:
        return DeviceConfig.from_dict(DeviceConfig, values, ignore_extensive_attributes=False)
    except ConfigError as error:
        raise ConfigError(problem.at(GROUP) for problem in error.problems) from None


def planned_device(task: Any, given: DeviceConfig | None, problems: list[Problem]) -> DeviceConfig | None:
    """The device that a run is about: that of the group `device`, or of a plan, the one that `task.device` names."""
    if not isinstance(task, PlanTaskConfig) or (task.device is None and given is not None):
        return given
    try:
        named = load_device(DEFAULT_DEVICE if task.device is None else task.device, "task.device")
    except ConfigError as error:
        problems.extend(error.problems)
        return given
    if given is not None and given != named:
        both = {"task.device": task.device, "device.name": given.name}
        problems.append(Problem(both, "the plan can be for one kind of device only", "Leave task.device away."))
    return named


def known_devices() -> dict[str, DeviceConfig]:
    """The figures of every option of the group `device`. In another app the group may hold something else: what cannot
    be read as a device is left out."""
    places = sources()
    names = tuple(loader(places).get_group_options(GROUP))
    try:
        return {name: _checked(values) for name, values in zip(names, _load(places, names), strict=True)}
    except REFUSED:
        return {name: device for name in names if (device := _device_or_none(name)) is not None}


def _device_or_none(name: str) -> DeviceConfig | None:
    try:
        return load_device(name)
    except REFUSED:
        return None


@cache
def _load(places: Sources, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The plain values of options."""
    nodes: Any = [OmegaConf.to_container(node, resolve=True) for node in compose_options(places, GROUP, names)]
    return nodes


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _chooses_device() -> bool:
    """True if the group `device` has been chosen, or if Hydra has not composed the config."""
    return not HydraConfig.initialized() or HydraConfig.get().runtime.choices.get(GROUP) is not None


hooks.known_devices, hooks.in_sweep, hooks.chooses_device = known_devices, _in_sweep, _chooses_device
