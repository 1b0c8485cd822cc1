"""Tests of lit_foundry.export."""
