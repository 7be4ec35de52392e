"""Config <-> the JSON beside a checkpoint. Reading never imports or runs anything that the text names."""

from ._difference import ABSENT as ABSENT
from ._difference import BOOKKEEPING as BOOKKEEPING
from ._difference import KINDS as KINDS
from ._difference import PARAMETERS as PARAMETERS
from ._difference import Difference as Difference
from ._difference import diff as diff
from ._difference import not_compared as not_compared
from ._format import VERSION as VERSION
from ._format import read_metadata as read_metadata
from ._format import read_run as read_run
from ._format import write_metadata as write_metadata
from ._places import find_checkpoint as find_checkpoint
from ._places import hold_folder as hold_folder
from ._places import read_metadata_text as read_metadata_text
from ._places import refuse_to_overwrite as refuse_to_overwrite
from ._places import saved_steps as saved_steps
from ._places import step_of as step_of
from ._provenance import provenance as provenance
from ._record import Record as Record
from ._record import read_model as read_model
from ._record import read_record as read_record
from ._record import record_of as record_of
from ._record import refuse_to_continue as refuse_to_continue
from ._registry import allow_modules as allow_modules
from ._registry import register_model_class as register_model_class
from ._text import MetadataError as MetadataError
