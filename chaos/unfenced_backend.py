"""A backend whose completions are not fenced: the control that the balance must find out.

Only the harness starts it. It takes the fence out of this one process, by replacing the
repository's condition with one that every attempt meets.
"""

from __future__ import annotations

import sys

from app.repositories.attempts import AttemptRepository
from app.serve import main

if __name__ == "__main__":
    AttemptRepository.fence = "%(attempt)s > 0"
    sys.exit(main())
