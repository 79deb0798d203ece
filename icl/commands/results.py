"""What the commands that compute something show of it."""

from ..evaluation import evaluate, training_figure
from ..output import say, show


def evaluate_and_show(run, **options) -> None:
    """Evaluates a run, draws its training, and shows both."""
    result = evaluate(run, **options)
    training_figure(run, run.path / "training.png")
    show(result.table())
    say(f"figures: {result.figure_path}, {run.path / 'training.png'}")


def show_result(result) -> None:
    """Shows the table of a result and says where its figure is."""
    show(result.table())
    if result.figure_path.exists():
        say(f"figure: {result.figure_path}")
