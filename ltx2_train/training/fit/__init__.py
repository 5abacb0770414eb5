"""How a run uses memory: predicted from headers, chosen, tried once, and made leaner when it turns out too little."""

from .choose import make_plan
from .facts import Facts
from .machine import Machine, Rates, available_ram, this_machine
from .memory_plan import Choice, MemoryPlan, Prediction
from .report import make_report, predict_run
from .work import Workload, largest_workload, parse_workload

__all__ = [
    "Choice",
    "Facts",
    "Machine",
    "MemoryPlan",
    "Prediction",
    "Rates",
    "Workload",
    "available_ram",
    "largest_workload",
    "make_plan",
    "make_report",
    "parse_workload",
    "predict_run",
    "this_machine",
]
