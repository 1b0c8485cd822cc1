"""Tests of lit_foundry.cli."""
