"""Labelled and tokenized texts."""
