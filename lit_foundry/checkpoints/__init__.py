"""Checkpoints on disk, and weights from one run to the next."""
