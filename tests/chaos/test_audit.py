"""The audit of the locked packages: what is found fails, what could not be asked is said."""

import json
from pathlib import Path

import pytest

from deploy.audit import audit

CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNASKED = {"name": "c", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([CLEAN], 0, ["1 packages looked up, 0 known"]),
        ([CLEAN, FLAWED], 1, ["b 2: CVE-1, mended in 3", "2 packages looked up, 1 known"]),
        ([UNASKED], 0, ["0 packages looked up, 0 known", "NOT CHECKED: 1 that"]),
        ([FLAWED, UNASKED], 1, ["b 2: CVE-1, mended in 3", "1 packages looked up, 1 known", "NOT CHECKED: 1 that"]),
    ],
)
def test_what_was_and_was_not_asked(packages: list[dict], code: int, words: list[str], tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'dependencies': packages})}\nEND\nexit 1\n")
    program.chmod(0o755)
    found, said = audit(str(program), "constraints.txt")
    assert found == code
    assert len(said.splitlines()) == len(words)
    assert all(line.startswith(begin) for line, begin in zip(said.splitlines(), words, strict=True))


def test_no_answer_is_said(tmp_path: Path) -> None:
    assert audit(str(tmp_path / "none"), "constraints.txt") == (0, f"NOT CHECKED: no pip-audit at {tmp_path / 'none'}")
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 1\n")
    silent.chmod(0o755)
    assert audit(str(silent), "constraints.txt") == (0, "NOT CHECKED: pip-audit gave no answer (JSONDecodeError)")
