"""``python -m manyhands`` is ``manyhands``."""

from manyhands.cli.app import main

if __name__ == "__main__":  # a process that works apart imports this file, too
    main()
