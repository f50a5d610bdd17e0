"""Writes its environment as JSON, or dies as told: `python -m tests.preflight.shows_environment FILE | fail | wait`."""

import json
import os
import sys
import time
from pathlib import Path

match sys.argv[1]:
    case "fail":
        sys.exit("the reason")
    case "wait":
        time.sleep(60)
    case path:
        Path(path).write_text(json.dumps(dict(os.environ)))
