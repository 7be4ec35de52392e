"""What a config will cost, with no device: memory, work, communication and time of a training step."""

from ._changes import Change as Change
from ._changes import changes_that_fit as changes_that_fit
from ._counts import Counts as Counts
from ._counts import Exchange as Exchange
from ._counts import count as count
from ._json import to_dict as to_dict
from ._memory import Memory as Memory
from ._own_costs import Activations as Activations
from ._own_costs import ModelCosts as ModelCosts
from ._own_costs import Share as Share
from ._plan import Plan as Plan
from ._plan import make_plan as make_plan
from ._plan import plan_objective as plan_objective
from ._report import report as report
from ._report import summary as summary
from ._report import verdict as verdict
from ._scale import Estimate as Estimate
from ._search import Search as Search
from ._search import choose as choose
from ._search import layout_overrides as layout_overrides
from ._search import search as search
from ._search_report import changes_report as changes_report
from ._search_report import search_report as search_report
from ._time import StepTime as StepTime
from ._time import Traffic as Traffic
from ._time import step_traffic as step_traffic
