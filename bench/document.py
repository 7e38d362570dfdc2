"""docs/benchmarks.md: each command rewrites its own section, and leaves the others as they are."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def write(section: str, text: str, document: Path = DOCUMENT) -> None:
    """Make `text` the whole of a section; one that is not there yet comes last."""
    before = document.read_text() if document.exists() else "# Benchmarks\n"
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    after = f"{begin}\n{text.strip()}\n{end}"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if found.search(before):
        document.write_text(found.sub(lambda _: after, before))
    else:
        document.write_text(f"{before.rstrip()}\n\n{after}\n")
