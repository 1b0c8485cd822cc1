"""Tests of lit_foundry.callbacks.probing."""
