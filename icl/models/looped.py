"""A transformer whose blocks are applied repeatedly (Yang et al. 2023, arXiv 2311.12424).

"Looped transformers are better at learning learning algorithms", section 4: x is the embedded
prompt, z_0 = 0 and z_{t+1} = transformer(z_t + x). One linear layer reads out every z_t. As in the
public code (Leiay/looped_transformer), the final layer norm is inside the loop. x includes the
positional embedding, so every loop adds it.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.taps import repeat
from ..ranges import COUNT, SIZE, STEPS, check_ranges
from .transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class LoopedTransformerConfig(TransformerConfig):
    """Settings of the model and of its loops; the defaults, b and T are the paper's."""

    title: ClassVar[str] = "looped transformer"

    layers: int = 1
    """Number of blocks in a loop."""
    loops: int = 30
    """Number of loops at the end of training and in evaluation (b)."""
    window: int = 15
    """Number of last loops that have a loss and a gradient; earlier loops have neither (T)."""
    loops_start: int | None = None
    """Number of loops at step 0; None for `window`."""
    loops_increment: int = 2
    """Number of loops added after each interval, up to `loops`."""
    loops_interval: int = 500
    """Number of training steps between two additions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "model",
            self,
            loops=SIZE,
            window=SIZE,
            loops_start=SIZE,
            loops_increment=COUNT,
            loops_interval=STEPS,
        )
        if not 1 <= self.window <= self._start <= self.loops:
            raise ValueError(
                f"loops need 1 <= window <= loops_start <= loops; got window {self.window}, "
                f"loops_start {self._start} and loops {self.loops}"
            )

    @property
    def _start(self) -> int:
        return self.window if self.loops_start is None else self.loops_start

    @property
    def passes(self) -> int:
        return self.window

    def loops_at(self, step: jax.Array | int | None) -> jax.Array | int:
        """Number of loops at a training step, traced if the step is; `loops` at None."""
        if step is None:
            return self.loops
        grown = self._start + self.loops_increment * (jnp.asarray(step) // self.loops_interval)
        return jnp.minimum(grown, self.loops)

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int | None:
        once = super().state_size(in_width, tokens, outputs)
        return None if once is None else self.loops * once

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "LoopedTransformer":
        return LoopedTransformer(in_width, tokens, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        once = super().flops_by_part(in_width, tokens, batch)
        passes = self.window + (self.loops - self.window) / 3
        ends = 6.0 * (in_width + self.window) * self.width * batch * tokens
        return {part: passes * flops for part, flops in once.items()} | {"ends": ends}


class LoopedTransformer(Transformer):
    """Maps prompts to one prediction for each token and loop; arguments as for `Transformer`."""

    def __init__(
        self,
        in_width: int,
        tokens: int,
        config: LoopedTransformerConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_width, tokens, config, outputs=outputs, rngs=rngs)
        self.config = config

    def __call__(
        self,
        tokens: jax.Array,
        read: slice = slice(None),
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        loops: jax.Array | int | None = None,
    ) -> jax.Array:
        """Predictions of the last loop; arguments, result and errors as for `Transformer`.

        Args:
          loops: number of loops, traced or not; `loops` of the config if None. May exceed the
            number of loops in training.
        """
        loops = self.config.loops if loops is None else loops
        if isinstance(loops, int) and loops < 1:
            raise ValueError(f"loops must be at least 1, got {loops}")
        x = self.embed(tokens, positions)
        seen = self._seen(positions, mask)
        loop = lambda z: self.transform(z + x, slice(None), **seen)
        z = repeat(loops - 1, loop, jnp.zeros_like(x))
        return self.predict(self.transform(z + x, read, **seen))

    def outputs_by_loop(
        self, tokens: jax.Array, read: slice = slice(None), loops: int | None = None
    ) -> jax.Array:
        """Predictions after each of `loops` loops, `[loops, ...]`; the config's `loops` if None."""
        x = self.embed(tokens)
        count = self.config.loops if loops is None else loops
        return self._run(x, jnp.zeros_like(x), read, count)

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        x = self.embed(tokens)
        loop = lambda _, z: self.transform(z + x)
        z = jax.lax.fori_loop(0, self.config.loops - 1, loop, jnp.zeros_like(x))
        return self._mixer_inputs(z + x)

    def training_outputs(
        self, tokens: jax.Array, read: slice = slice(None), step: jax.Array | int | None = None
    ) -> jax.Array:
        """Predictions of the last `window` loops at a step; earlier loops have no gradient."""
        config = self.config
        x = self.embed(tokens)
        graph, state = nnx.split(self)
        still, still_x = nnx.merge(graph, jax.lax.stop_gradient(state)), jax.lax.stop_gradient(x)
        # A loop of traced length has no reverse-mode gradient, so it runs on constants.
        z = jax.lax.fori_loop(
            0,
            config.loops_at(step) - config.window,
            lambda _, z: still.transform(z + still_x),
            jnp.zeros_like(still_x),
        )
        return self._run(x, z, read, config.window)

    def _run(self, x: jax.Array, z: jax.Array, read: slice, loops: int) -> jax.Array:
        def loop(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            z = self.transform(z + x)
            return z, self.predict(z[:, read])

        return jax.lax.scan(loop, z, length=loops)[1]
