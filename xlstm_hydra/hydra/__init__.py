"""The door to Hydra: our groups in its ConfigStore and search path, and composed configs out of it, checked and typed."""

from ._errors import explain as explain
from ._load import load as load
from ._load import make_model_config as make_model_config
from ._load import resolve_classes as resolve_classes
from ._load import validate as validate
from xlstm_hydra._conf_dir import conf_dir as conf_dir

from ._register import register as register
from ._sweep import check_points as check_points
