"""One recipe, run: jobs, the processes that take them, checkpoints, the cache."""
