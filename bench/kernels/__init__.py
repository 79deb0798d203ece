"""Speed of `icl.kernels` compared with other kernels, and the tuner of launches."""
