"""Knowledge distillation: a student learns what a teacher gives."""
