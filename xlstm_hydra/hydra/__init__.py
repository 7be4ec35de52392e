"""Hydra integration: search path, overrides, composition, and conversion to a checked `RunConfig`."""

import importlib
from typing import TYPE_CHECKING, Any

from xlstm_hydra.conf_dir import conf_dir as conf_dir
from xlstm_hydra.conf_dir import current_option as current_option

if TYPE_CHECKING:
    from ._arguments import expand_from as expand_from
    from ._arguments import is_sweep as is_sweep
    from ._arguments import overrides_first as overrides_first
    from ._arguments import parse_known_flags as parse_known_flags
    from ._arguments import verifies as verifies
    from ._composer import Point as Point
    from ._explain import explain as explain
    from ._explain import file_problems as file_problems
    from ._explain import located as located
    from ._explain import package_problem as package_problem
    from ._from_checkpoint import SavedOptions as SavedOptions
    from ._hydra_part import REQUIRED as REQUIRED
    from ._hydra_part import callbacks_of as callbacks_of
    from ._hydra_part import check_engines as check_engines
    from ._hydra_part import check_unused_engines as check_unused_engines
    from ._hydra_part import hydra_rules as hydra_rules
    from ._hydra_part import launcher_rules as launcher_rules
    from ._hydra_part import overrides_of_other as overrides_of_other
    from ._hydra_part import require_engine as require_engine
    from ._interpolations import unknown_engine as unknown_engine
    from ._lenient import UNREADABLE as UNREADABLE
    from ._load import load as load
    from ._load import make_model_config as make_model_config
    from ._load import read as read
    from ._load import validate as validate
    from ._omegaconf import REFUSED as REFUSED
    from ._omegaconf import VERSION_BASE as VERSION_BASE
    from ._options import known_devices as known_devices
    from ._options import load_device as load_device
    from ._overrides import shortest_overrides as shortest_overrides
    from ._points import SweepLoader as SweepLoader
    from ._points import check_points as check_points
    from ._points import common as common
    from ._points import differing as differing
    from ._points import invalid_points as invalid_points
    from ._points import is_run as is_run
    from ._points import jobs_with as jobs_with
    from ._quote import as_override as as_override
    from ._quote import expand_home as expand_home
    from ._quote import quote_texts as quote_texts
    from ._refusals import interval_types as interval_types
    from ._refusals import unset_variable as unset_variable
    from ._resolvers import register as register
    from ._resolvers import register_resolvers as register_resolvers
    from ._schemas import SCHEMAS as SCHEMAS
    from ._schemas import OnInvalid as OnInvalid
    from ._schemas import SweeperConfig as SweeperConfig
    from ._schemas import own_options as own_options
    from ._schemas import schema_node as schema_node
    from ._search_path import check_primary as check_primary
    from ._search_path import has_own_files as has_own_files
    from ._search_path import search_path as search_path
    from ._split import check_basic_sweep as check_basic_sweep
    from ._split import first_point as first_point
    from ._split import split as split
    from ._unreadable import unreadable as unreadable

_NAMES = {
    "_arguments": "expand_from is_sweep overrides_first parse_known_flags verifies",
    "_composer": "Point",
    "_explain": "explain file_problems located package_problem",
    "_from_checkpoint": "SavedOptions",
    "_hydra_part": "REQUIRED callbacks_of check_engines check_unused_engines hydra_rules launcher_rules "
    "overrides_of_other require_engine",
    "_interpolations": "unknown_engine",
    "_lenient": "UNREADABLE",
    "_load": "load make_model_config read validate",
    "_omegaconf": "REFUSED VERSION_BASE",
    "_options": "known_devices load_device",
    "_overrides": "shortest_overrides",
    "_points": "SweepLoader check_points common differing invalid_points is_run jobs_with",
    "_quote": "as_override expand_home quote_texts",
    "_refusals": "interval_types unset_variable",
    "_resolvers": "register register_resolvers",
    "_schemas": "SCHEMAS OnInvalid SweeperConfig own_options schema_node",
    "_search_path": "check_primary has_own_files search_path",
    "_split": "check_basic_sweep first_point split",
    "_unreadable": "unreadable",
}
"""Public names by module. Modules are imported lazily, on first use of one of their names: `--cfg job` needs few."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES[name]}", __name__)
    value = globals()[name] = getattr(module, name)
    return value
