"""Benchmarks of fused-icl: `python -m bench` lists and runs them; README.md here explains them."""
