"""The speed of `icl.kernels` beside that of others' kernels, and the tuner of launches."""
