"""The command line: arguments, printing and exit codes; one command is one library call."""

from __future__ import annotations

import os
import sys

# Spinning BLAS threads collapse when cores are contended; it must stand before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rankscope.cli.group import cli as cli


def main() -> None:
    """Run the ``rankscope`` command."""
    sys.exit(cli.main(prog_name="rankscope", standalone_mode=True))
