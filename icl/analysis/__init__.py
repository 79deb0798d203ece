"""What a trained learner does, and how: mechanisms, comparisons, the papers' views of them."""

from .alignment import Alignment, alignment
from .catalogue import ANALYSES, Analysis, applicable
from .copying import Copying, copying
from .descent import Descent, construction, tuned_descent
from .descent_shifts import DescentShifts, descent_shifts
from .dual import DualCurves, dual_of_run
from .heads import Heads, heads
from .learned_function import LearnedFunction, learned_function
from .preconditioning import Preconditioning, preconditioning

__all__ = [
    "ANALYSES",
    "Alignment",
    "Analysis",
    "Copying",
    "Descent",
    "DescentShifts",
    "DualCurves",
    "Heads",
    "LearnedFunction",
    "Preconditioning",
    "alignment",
    "applicable",
    "construction",
    "copying",
    "descent_shifts",
    "dual_of_run",
    "heads",
    "learned_function",
    "preconditioning",
    "tuned_descent",
]
