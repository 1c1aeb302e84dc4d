"""What a method is, and how methods join into recipes."""
