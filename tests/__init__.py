"""Tests of lit_foundry, a file for each module."""
