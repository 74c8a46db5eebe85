"""``python -m rankscope`` is the ``rankscope`` command."""

from rankscope.cli import main

if __name__ == "__main__":
    main()
