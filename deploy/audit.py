"""Asks pip-audit for known vulnerabilities of the locked packages, and says what could not be asked.

    python deploy/audit.py PIP_AUDIT constraints.txt

pip-audit ends with 0 and "no known vulnerabilities found" where its service does not answer, too. Here the last line
says how many packages were looked up and how many were not. Ends with 1 where something was found.
"""

import json
import subprocess
import sys
from collections.abc import Sequence


def audit(program: str, requirements: str) -> tuple[int, str]:
    """Exit code and what to print."""
    try:
        done = subprocess.run(
            [program, "--requirement", requirements, "--no-deps", "--disable-pip", "--format", "json"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        packages = json.loads(done.stdout)["dependencies"]
    except FileNotFoundError:
        return 0, f"NOT CHECKED: no pip-audit at {program}"
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return 0, f"NOT CHECKED: pip-audit gave no answer ({type(error).__name__})"
    lines = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    asked = len(packages) - len(skipped)
    lines.append(f"{asked} packages looked up, {len(lines)} known vulnerabilities")
    if skipped:
        lines.append(f"NOT CHECKED: {len(skipped)} that the service did not know: {', '.join(sorted(skipped)[:10])}")
    return int(len(lines) > 1 + bool(skipped)), "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The door."""
    code, words = audit(*arguments)
    print(words)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
