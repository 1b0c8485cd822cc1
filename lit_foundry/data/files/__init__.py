"""What files hold, row by row."""
