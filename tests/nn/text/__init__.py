"""Tests of lit_foundry.nn.text."""
