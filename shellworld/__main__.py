"""The command `python -m shellworld`; see `cli.py`."""

import sys

from shellworld.cli import main

sys.exit(main())
