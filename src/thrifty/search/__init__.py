"""What looks for recipes."""
