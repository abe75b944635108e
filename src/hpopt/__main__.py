"""Runs the command line as `python -m hpopt`."""

import os
import sys

# Python puts the current folder first, where a file of the user's would shadow a library of ours.
if sys.path[0] in {"", os.getcwd()}:  # noqa: PTH109 - pathlib is one of them.
    del sys.path[0]

from hpopt.cli.main import main

main()
