"""What trained networks score and cost."""
