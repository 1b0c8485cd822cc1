"""Labelled and decoded images."""
