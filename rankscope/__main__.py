"""``python -m rankscope`` is the ``rankscope`` command."""

from rankscope.cli import main

main()
