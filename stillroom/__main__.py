"""`python -m stillroom …` is `stillroom …`, and so is `torchrun -m stillroom run …` on every rank."""

import sys

from stillroom.cli import main

sys.exit(main())
