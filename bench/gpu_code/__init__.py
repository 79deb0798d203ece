"""What `check_gpu_code.py` looks at: launches, compiled kernels, lowered programs, traffic."""
