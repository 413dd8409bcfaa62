"""`python -m isr_dpo.cli`."""

import sys

from isr_dpo.cli import main

sys.exit(main())
