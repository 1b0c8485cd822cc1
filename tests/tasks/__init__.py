"""Tests of lit_foundry.tasks."""
