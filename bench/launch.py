"""Run a command, and write its seconds, its exit code and the kilobytes of its largest process into the file named first.

A process of its own, and a small one: what the system reports as a child's peak is at least what its parent had when it started it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    begun = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:])
    _, status, usage = os.wait4(process.pid, 0)
    seconds, exit_code = time.perf_counter() - begun, os.waitstatus_to_exitcode(status)
    Path(sys.argv[1]).write_text(json.dumps({"seconds": seconds, "kilobytes": usage.ru_maxrss, "exit_code": exit_code}))
