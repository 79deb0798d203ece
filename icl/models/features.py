"""A learned representation of each token: a linear embedding and a residual MLP."""

import jax
from flax import nnx


class Features(nnx.Module):
    """e + MLP(e) with e = W x and a GELU MLP of 4 * width hidden units, applied to each token.

    Von Oswald et al. 2023 (section 4 and appendix A.10) embed 2 features in 40 without bias, and
    use an MLP from 40 to 160 to 40.

    Args:
      in_width: number of features of a token.
      width: number of features of the representation.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(in_width, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[..., in_width]` to `[..., width]`."""
        x = self.embed(x)
        return x + self.down(jax.nn.gelu(self.up(x)))
