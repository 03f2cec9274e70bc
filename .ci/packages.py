"""Look up known vulnerabilities of the pinned packages with pip-audit; exit code 1 if there are any.

If the database cannot be reached, nothing is audited, and the last line reports that.
"""

import json
import subprocess
import sys

COMMAND = [
    "pip-audit",
    "-r",
    "requirements.lock",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner",
    "off",
    "--timeout",
    "3",
    "-f",
    "json",
]


def main() -> None:
    """Print a line per known fault, then the number of audited packages."""
    result = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    packages = json.loads(result.stdout)["dependencies"] if result.stdout.startswith("{") else []
    audited = [package for package in packages if "vulns" in package]
    faults = [(package, fault) for package in audited for fault in package["vulns"]]
    for package, fault in faults:
        print(f"{package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no release yet'}")
    reason = packages[0]["skip_reason"] if packages and not audited else result.stderr.strip().rpartition("\n")[2]
    print(
        f"{len(audited)} of {len(packages)} packages audited, {len(faults)} known faults" if audited else f"packages not audited: {reason}"
    )
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
