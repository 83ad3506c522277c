"""``python -m kdlab`` is the ``kdlab`` command."""

from kdlab.cli import main

if __name__ == "__main__":
    main()
