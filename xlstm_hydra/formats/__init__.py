"""The text of a checkpoint's metadata -> plain groups: ours by version, and that of xlstm-jax."""

from ._hub import CONFIG as CONFIG
from ._hub import LFS_POINTER as LFS_POINTER
from ._hub import hub_address as hub_address
from ._hub import hub_id as hub_id
from ._hub import is_lfs_pointer as is_lfs_pointer
from ._hub import missing_weights as missing_weights
from ._hub import model_in as model_in
from ._json_text import MetadataError as MetadataError
from ._json_text import error as error
from ._json_text import parse as parse
from ._own import FORMAT as FORMAT
from ._own import VERSION as VERSION
from ._own import decode_run as decode_run
from ._own import read_metadata as read_metadata
from ._own import read_run as read_run
from ._own import upgrade as upgrade
from ._own import write_metadata as write_metadata
from ._registry import allow_modules as allow_modules
from ._registry import register_model_class as register_model_class
from ._xlstm_jax_model import WRITER as WRITER
from ._xlstm_jax_model import is_xlstm_jax as is_xlstm_jax
from ._xlstm_jax_model import read_xlstm_jax as read_xlstm_jax
