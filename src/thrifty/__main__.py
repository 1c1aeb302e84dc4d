"""``python -m thrifty`` and ``thrifty``: the command line."""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C while it is imported is answered as later, with 130."""
    try:
        from thrifty.cli.app import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
