"""Text networks."""
