"""Training: a compiled program for a run on a mesh, and the loop around it."""

from ._compiled import Comparison as Comparison
from ._compiled import Compiled as Compiled
from ._compiled import compare as compare
from ._compiled import compile_program as compile_program
from ._compiled import compile_step as compile_step
from ._compiled import exchanged as exchanged
from ._compiled import listed as listed
from ._compiled import widened as widened
from ._loop import train as train
from ._processes import together as together
from ._program import Program as Program
from ._program import build_program as build_program
from ._resume import read_resumed as read_resumed
from ._resume import refuse_other_result as refuse_other_result
