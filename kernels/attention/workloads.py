"""Named shapes of real workloads, for tests, checks and benchmarks."""

from typing import NamedTuple


class Workload(NamedTuple):
    """B batch rows, T queries and keys, N heads of H features; bfloat16 by default."""

    B: int
    T: int
    N: int
    H: int
    is_causal: bool

    def flops(self, backward: bool) -> int:
        """Operations of the necessary products: 2 forward, 5 backward.

        A causal call needs T (T + 1) / 2 pairs.
        """
        pairs = self.T * (self.T + 1) // 2 if self.is_causal else self.T * self.T
        return (10 if backward else 4) * self.B * self.N * pairs * self.H

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
}
