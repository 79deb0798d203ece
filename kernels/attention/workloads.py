"""Named shapes of real workloads, for tests, checks and benchmarks."""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """B batch rows, T queries and keys, N heads of H features; bfloat16 by default.

    keys: the smallest and the largest number of keys that a batch row sees; None if all keys are
      seen. Only without causality.
    """

    B: int
    T: int
    N: int
    H: int
    is_causal: bool
    keys: tuple[int, int] | None = None

    @property
    def lengths(self) -> np.ndarray | None:
        """The number of keys that each batch row sees, int32 `[B]`, evenly spread; or None."""
        if self.keys is None:
            return None
        return np.linspace(*self.keys, self.B).round().astype(np.int32)

    def flops(self, backward: bool) -> int:
        """Operations of the necessary products: 2 forward, 5 backward.

        A causal call needs T (T + 1) / 2 pairs; hidden keys need none.
        """
        pairs = self.T * (self.T + 1) // 2 if self.is_causal else self.T * self.T
        pairs *= self.B
        if self.lengths is not None:
            pairs = self.T * int(self.lengths.sum())
        return (10 if backward else 4) * self.N * pairs * self.H

    def bytes(self, backward: bool, itemsize: int = 2) -> int:
        """Fewest bytes to move: each input read and each output written once, 4 or 7 tensors."""
        return (7 if backward else 4) * self.B * self.T * self.N * self.H * itemsize


WORKLOADS = {
    # Garg et al. 2022: 41 examples, x and y apart.
    "garg": Workload(4096, 82, 8, 32, True),
    "short-causal": Workload(4096, 64, 8, 32, True),
    "short-full": Workload(4096, 64, 8, 32, False),
    # Kirsch et al. 2022, general-purpose in-context learners: 100 examples.
    "gpicl": Workload(1024, 100, 8, 32, True),
    # Chan et al. 2022: eight image and label pairs and a query.
    "chan": Workload(32768, 17, 8, 8, True),
    "tiny-causal": Workload(32768, 16, 8, 16, True),
    "tiny-full": Workload(32768, 16, 8, 16, False),
    "medium-causal": Workload(1024, 256, 8, 32, True),
    "medium-full": Workload(1024, 256, 8, 32, False),
    "long-causal": Workload(256, 512, 8, 64, True),
    "long-full": Workload(256, 512, 8, 64, False),
    # von Oswald et al. 2023: ten examples and a query, one head.
    "oswald": Workload(65536, 11, 1, 16, False),
    "text": Workload(8, 4096, 8, 64, True),
    # Pfefferle et al. 2025, nanoTabPFN: 32 tables of 100 examples, 50 queries and 5 columns.
    "cells-columns": Workload(4800, 6, 4, 24, False),
    "cells-rows": Workload(192, 150, 4, 24, False, (100, 100)),
    # Müller et al. 2022, prior-fitted networks: a table's row is a token, examples vary in number.
    "pfn": Workload(64, 160, 4, 16, False, (8, 128)),
}
