"""Tests of lit_foundry.data.sets."""
