"""Many runs from one file: the sweeps of Weights & Biases, without an account."""

from dml.sweep.plan import Plan, Planned, read_plan
from dml.sweep.runner import Outcome, run_all

__all__ = ["Outcome", "Plan", "Planned", "read_plan", "run_all"]
