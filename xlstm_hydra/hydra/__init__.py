"""The door to Hydra: our groups in its search path, and composed configs out of it, checked and typed."""

from xlstm_hydra._conf_dir import conf_dir as conf_dir

from ._arguments import expand_from as expand_from
from ._arguments import quote_texts as quote_texts
from ._compose import SweepLoader as SweepLoader
from ._device import known_devices as known_devices
from ._device import load_device as load_device
from ._device import recognise_device as recognise_device
from ._engines import check_engines as check_engines
from ._engines import check_idle_engines as check_idle_engines
from ._engines import require_engine as require_engine
from ._from_checkpoint import without_idle as without_idle
from ._load import load as load
from ._load import make_model_config as make_model_config
from ._load import resolve_classes as resolve_classes
from ._load import validate as validate
from ._load import write_layout as write_layout
from ._other_process import overrides_of_other as overrides_of_other
from ._overrides import shortest_layout as shortest_layout
from ._overrides import shortest_overrides as shortest_overrides
from ._points import Point as Point
from ._points import by_job as by_job
from ._points import check_points as check_points
from ._points import explain as explain
from ._points import invalid_points as invalid_points
from ._points import is_run as is_run
from ._points import jobs_with as jobs_with
from ._quote import as_override as as_override
from ._refusals import REFUSED as REFUSED
from ._refusals import interval_types as interval_types
from ._register import own_options as own_options
from ._register import register as register
from ._split import split as split
from ._sweeper import OnInvalid as OnInvalid
from ._sweeper import SweeperConfig as SweeperConfig
from ._versions import VERSION_BASE as VERSION_BASE
