"""Tests of lit_foundry.data.image."""
