"""What would run on a GPU, checked without one: launches, compiled kernels, programs, traffic."""
