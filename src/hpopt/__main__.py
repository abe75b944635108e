"""Runs the command line as `python -m hpopt`."""

from hpopt.cli.main import main

main()
