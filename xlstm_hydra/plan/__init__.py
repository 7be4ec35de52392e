"""What a config will cost, with no device: memory, work, communication and time of a training step."""

from ._counts import Counts as Counts
from ._counts import Exchange as Exchange
from ._counts import count as count
from ._memory import Memory as Memory
from ._own_costs import Activations as Activations
from ._own_costs import ModelCosts as ModelCosts
from ._own_costs import Share as Share
from ._plan import Plan as Plan
from ._plan import make_plan as make_plan
from ._plan import plan_objective as plan_objective
from ._time import StepTime as StepTime
from ._time import Traffic as Traffic
from ._time import step_traffic as step_traffic
