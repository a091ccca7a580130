"""``python -m pythia_export`` is the ``pythia-export`` command."""

from .cli import main

if __name__ == "__main__":
    main()
