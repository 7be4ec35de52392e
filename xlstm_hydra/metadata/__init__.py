"""The public interface to saved metadata: a thin facade over `formats`, `configs` and `runs`."""

from xlstm_hydra.configs import allow_modules as allow_modules
from xlstm_hydra.configs import register_model_class as register_model_class
from xlstm_hydra.formats import MetadataError as MetadataError
from xlstm_hydra.formats import read_metadata as read_metadata
from xlstm_hydra.runs import Difference as Difference
from xlstm_hydra.runs import Record as Record
from xlstm_hydra.runs import diff as diff
from xlstm_hydra.runs import read_record as read_record
from xlstm_hydra.runs import write_metadata as write_metadata
