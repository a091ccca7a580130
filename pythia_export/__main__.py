"""``python -m pythia_export`` is the ``pythia-export`` command.

Nothing is imported before Ctrl-C is heard: an interrupted start is no traceback.
"""

import sys


def main() -> None:
    """Entry point of the command."""
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)  # errors.EXIT_INTERRUPTED, which may not be imported yet


if __name__ == "__main__":
    main()
