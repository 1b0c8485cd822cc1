"""What trained networks are worth and cost, in whatever form they are."""
