"""What a trained learner does, and how: mechanisms, comparisons, the papers' views of them.

`ask("heads", run)` asks a run, a sweep or nothing one of `ANALYSES`; each is a file here.
"""

from .catalogue import ANALYSES, Analysis, applicable, ask, studies

__all__ = ["ANALYSES", "Analysis", "applicable", "ask", "studies"]
