"""The command: python -m tests.oracles FOLDER [--rollouts FOLDER] [--only FILE=REGEX]."""

import sys

from .runner import main

sys.exit(main())
