"""The command line: the verbs, one file per group."""
