"""Training: a compiled program for a run on a mesh, and the loop around it."""

from xlstm_hydra._logging import log as log
from xlstm_hydra.plan import Comparison as Comparison
from xlstm_hydra.plan import Compiled as Compiled
from xlstm_hydra.plan import compare as compare
from xlstm_hydra.plan import compile_program as compile_program
from xlstm_hydra.plan import compile_step as compile_step
from xlstm_hydra.plan import exchanged as exchanged
from xlstm_hydra.plan import listed as listed
from xlstm_hydra.plan import widened as widened

from ._agree import agree_on_corpus as agree_on_corpus
from ._agree import agree_on_run as agree_on_run
from ._log import bits as bits
from ._loop import train as train
from ._resumed import read_resumed as read_resumed
from ._resumed import refuse_other_result as refuse_other_result
