"""What a trained learner does: the function it learned from its context."""

from .learned_function import LearnedFunction, learned_function

__all__ = ["LearnedFunction", "learned_function"]
