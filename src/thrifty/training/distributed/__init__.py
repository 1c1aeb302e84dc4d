"""Trainings of several processes: who holds what of the model, and how gradients are added."""
