"""Tests of lit_foundry.report."""
