"""Tests of lit_foundry.runs."""
