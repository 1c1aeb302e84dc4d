"""Parameter-efficient fine-tuning: a few new parameters are trained, the model's own stand still."""
