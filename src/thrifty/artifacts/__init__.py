"""An artifact: a directory that serves."""
