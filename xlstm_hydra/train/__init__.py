"""Training: the training loop, with the checks, the planning and the logging around it."""

from ._agree import agree_on_corpus as agree_on_corpus
from ._agree import agree_on_run as agree_on_run
from ._announce import announce as announce
from ._announce import announce_start as announce_start
from ._log import MetricLog as MetricLog
from ._log import bits as bits
from ._loop import train as train
from ._planning import RunPlan as RunPlan
from ._planning import choose_layout as choose_layout
from ._planning import plan_program as plan_program
from ._resumed import read_resumed as read_resumed
from ._resumed import refuse_other_result as refuse_other_result
