"""Tests of lit_foundry.nn.image."""
