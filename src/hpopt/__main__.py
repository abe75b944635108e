"""Runs the command line as `python -m hpopt`."""

from hpopt.cli import main

main()
