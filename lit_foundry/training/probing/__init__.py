"""What the features of a network are worth: how they are taken, and what tells classes by them."""
