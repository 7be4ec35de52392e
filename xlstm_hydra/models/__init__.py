"""What is computed: Flax Linen models. They take a config and the mesh axes, and never see Hydra."""

from ._cell import mlstm_chunkwise as mlstm_chunkwise
from ._cell import mlstm_quadratic as mlstm_quadratic
from ._cell import mlstm_recurrent as mlstm_recurrent
from ._cell import mlstm_step as mlstm_step
from ._layers import OVERLAPPING as OVERLAPPING
from ._layers import Dense as Dense
from ._layers import HeadNorm as HeadNorm
from ._layers import Norm as Norm
from ._linen import apply_model as apply_model
from ._linen import box_sharded as box_sharded
from ._linen import build_model as build_model
from ._linen import init_model as init_model
from ._linen import knows_axes as knows_axes
from ._linen import list_parameters as list_parameters
from ._linen import remat_by_name as remat_by_name
from ._llama import Llama as Llama
from ._lm import Embed as Embed
from ._lm import LanguageModel as LanguageModel
from ._lm import LMHead as LMHead
from ._mlstm import mLSTM as mLSTM
from ._mlstm_v1 import mLSTMv1 as mLSTMv1
from ._slstm_cell import slstm as slstm
from ._slstm_cell import slstm_start as slstm_start
from ._slstm_cell import slstm_step as slstm_step
from ._xlstm import xLSTM as xLSTM
