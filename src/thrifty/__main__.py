"""``python -m thrifty``: the command line."""

from thrifty.cli.app import main

main()
