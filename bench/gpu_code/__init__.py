"""Checks GPU code without a GPU: launches, compiled kernels, programs and memory traffic."""
