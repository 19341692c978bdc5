"""`python -m stillroom …`, and `torchrun -m stillroom run …`."""

import sys

from stillroom.cli import main

sys.exit(main())
