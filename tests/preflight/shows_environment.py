"""Writes its environment as JSON or dies: `python -m tests.preflight.shows_environment FILE|fail|wait [NAME]`."""

import json
import os
import sys
import time
from pathlib import Path

match sys.argv[1]:
    case "fail":
        sys.exit("the reason")
    case "wait":
        time.sleep(300)
    case path:
        Path(path).write_text(json.dumps(dict(os.environ)))
