"""What a trained learner does, and how: mechanisms, comparisons, the papers' views of them.

`ask("heads", run)` asks a run, a sweep or nothing one of `ANALYSES`. Those of the library are each
a file here; `register_analysis` adds one of your own.
"""

from .catalogue import ANALYSES, Analysis, applicable, ask, register_analysis, studies

__all__ = ["ANALYSES", "Analysis", "applicable", "ask", "register_analysis", "studies"]
