"""Config <-> the JSON beside a checkpoint. Reading never imports or runs anything that the text names."""

from ._format import VERSION as VERSION
from ._format import MetadataError as MetadataError
from ._format import read_metadata as read_metadata
from ._format import read_model as read_model
from ._format import read_run as read_run
from ._format import write_metadata as write_metadata
from ._provenance import provenance as provenance
