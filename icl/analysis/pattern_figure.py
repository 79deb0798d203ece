"""A figure of attention patterns, a panel for each head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..report.figures import STYLE, WIDTH, pyplot, save_figure


def draw_patterns(
    patterns: Sequence[np.ndarray], path: str | Path, prompt: int | None = None
) -> None:
    """Draws the patterns of all heads, a row a layer, as PNG and as PDF beside it.

    Args:
      patterns: by layer, weights `[B, N, T, S]` (query, key), as `Instrument.capture` gives them.
      path: the file, with the ending `.png`.
      prompt: the prompt to draw; None for the mean over prompts.
    """
    plt = pyplot()
    rows = [layer.mean(axis=0) if prompt is None else layer[prompt] for layer in patterns]
    heads = max(len(row) for row in rows)
    width = min(WIDTH, 2.0 * heads + 0.5)
    height = (width - 0.5) / heads + 0.1
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            len(rows), heads, figsize=(width, height * len(rows) + 0.3),
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for layer, (axes_of_layer, row) in enumerate(zip(panels, rows)):
            for head, axes in enumerate(axes_of_layer):
                axes.set_visible(head < len(row))
                if head < len(row):
                    axes.imshow(row[head], cmap="Blues", vmin=min(0.0, row[head].min()))
                    name = f"layer {layer + 1}, head {head + 1}"
                    axes.set_title(name if heads <= 4 else name.replace(", ", "\n"), fontsize=8)
                    axes.tick_params(labelsize=7)
                    axes.grid(False)
        panels[-1, 0].set(xlabel="key", ylabel="query")
        save_figure(figure, Path(path))
