"""`python -m pdnet`, the same as `pdnet`."""

import sys

from pdnet.cli import main

sys.exit(main())
