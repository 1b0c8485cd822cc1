"""Tests of lit_foundry.data.corpus."""
