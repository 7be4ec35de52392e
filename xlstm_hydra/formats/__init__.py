"""Read the metadata text of a checkpoint as plain values by config group. All versions of our own format and the
xlstm-jax format are supported."""

from ._json_text import LFS_POINTER as LFS_POINTER
from ._json_text import MetadataError as MetadataError
from ._json_text import error as error
from ._json_text import is_lfs_pointer as is_lfs_pointer
from ._json_text import parse as parse
from ._json_text import path_part as path_part
from ._own import FORMAT as FORMAT
from ._own import STRICT as STRICT
from ._own import VERSION as VERSION
from ._own import problems_beside as problems_beside
from ._own import read_metadata as read_metadata
from ._own import upgrade as upgrade
from ._table_reader import PlainGroup as PlainGroup
from ._table_reader import Reading as Reading
from ._table_reader import log_ignored as log_ignored
from ._table_reader import unset_note as unset_note
from ._xlstm_jax_model import WRITER as WRITER
from ._xlstm_jax_model import is_xlstm_jax as is_xlstm_jax
from ._xlstm_jax_model import read_xlstm_jax as read_xlstm_jax
from ._xlstm_jax_table import PUBLISHED_CLASSES as PUBLISHED_CLASSES
