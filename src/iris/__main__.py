"""`python -m iris` is `iris`."""

import sys

from .cli import main

sys.exit(main())
