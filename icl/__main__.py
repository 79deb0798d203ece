"""`python -m icl` is the command `icl`."""

import sys

from .cli import main

sys.exit(main())
