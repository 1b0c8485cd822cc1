"""What every task is trained with."""
