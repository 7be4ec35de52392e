"""Checkpoints: save the state of a run, and restore the whole state or only the parameters onto any layout."""

from ._faults import SaveError as SaveError
from ._faults import reason as reason
from ._parameters import Loaded as Loaded
from ._parameters import Misfit as Misfit
from ._parameters import check_params as check_params
from ._parameters import convert as convert
from ._parameters import find_weights as find_weights
from ._parameters import load_checkpoint as load_checkpoint
from ._parameters import load_params as load_params
from ._parameters import recorded_model as recorded_model
from ._saved import Checkpoints as Checkpoints
from ._saved import Logged as Logged
from ._saved import read_logged as read_logged
from ._saved import restore as restore
from ._saved import to_json as to_json
from ._transfer import export_checkpoint as export_checkpoint
from ._transfer import import_checkpoint as import_checkpoint
