"""The `pythia-export` command, and ``python -m pythia_export``.

Nothing is imported before Ctrl-C is heard, so that an interrupted start is no traceback, nor before the current folder
is left, so that no module in it is taken for another.
"""

import sys


def main() -> None:
    """Entry point of the command."""
    try:
        from .base.interpreter import fill_standard_streams, leave_current_folder

        leave_current_folder()
        fill_standard_streams()
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)  # errors.EXIT_INTERRUPTED, which may not be imported yet


if __name__ == "__main__":
    main()
