"""Tests of lit_foundry.training.probing."""
