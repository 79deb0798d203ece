"""Speed of the trainer, beside PyTorch trainers."""
