"""Tests of lit_foundry.nn.pruning."""
