"""Named shapes of real workloads, for tests, checks and benchmarks."""

from typing import NamedTuple


class Workload(NamedTuple):
    """B batch rows, T queries and keys, N heads of H features, values too; bfloat16 by default."""

    B: int
    T: int
    N: int
    H: int
    is_causal: bool = True

    def flops(self, backward: bool, is_delta: bool = False) -> int:
        """Operations of the necessary products, in the form that needs fewer.

        By pairs, 2 products forward and 5 backward over T (T + 1) / 2 pairs (T * T if not causal);
        by states, 2 forward and 5 backward over T steps of H features. The delta rule also reads
        the state by the key: 3 forward and 7 backward.
        """
        pairs = self.T * (self.T + 1) // 2 if self.is_causal else self.T * self.T
        least = min(pairs, self.T * self.H)
        products = (7 if backward else 3) if is_delta else (5 if backward else 2)
        return 2 * products * self.B * self.N * least * self.H

    def bytes(self, backward: bool, itemsize: int = 2) -> int:
        """Fewest bytes to move: each input read and each output written once, 4 or 7 tensors."""
        return (7 if backward else 4) * self.B * self.T * self.N * self.H * itemsize


WORKLOADS = {
    "short": Workload(4096, 64, 8, 32),
    "tiny": Workload(32768, 16, 8, 16),
    # Meta-training: more rows and heads than flash-linear-attention can number (its issue 172).
    "many-rows": Workload(10923, 32, 6, 16),
    # von Oswald et al. 2023: ten examples and a query, one head.
    "oswald": Workload(65536, 11, 1, 16, False),
    "medium": Workload(1024, 128, 8, 32),
    "long": Workload(256, 512, 8, 64),
    "text": Workload(16, 4096, 8, 64),
}
