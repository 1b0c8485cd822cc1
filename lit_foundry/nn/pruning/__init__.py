"""Structured pruning: which units of a network can go, which matter, and how many have to."""
