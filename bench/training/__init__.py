"""Speed of the trainer compared with PyTorch trainers."""
