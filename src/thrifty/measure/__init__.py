"""What a model costs to serve: time, memory, energy, with intervals and without excuses."""
