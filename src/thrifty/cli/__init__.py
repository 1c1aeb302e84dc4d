"""The command line: the verbs, one file a group."""
