"""Tests of lit_foundry.data.files."""
