"""What the user brings: a model, its data, how it is judged, trained and served."""
