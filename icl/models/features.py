"""A deep representation of single tokens: an embedding and a residual MLP."""

import jax
from flax import nnx


class Features(nnx.Module):
    """e + MLP(e) with e = W x and a GELU MLP four times as wide, on every token alone.

    Von Oswald et al. 2023, section 4 and appendix A.10: 2 to 40 features without bias, then
    40 to 160 to 40.

    Args:
      in_width: features of a token.
      width: features of its representation.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(in_width, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` of tokens `[..., in_width]`."""
        x = self.embed(x)
        return x + self.down(jax.nn.gelu(self.up(x)))
