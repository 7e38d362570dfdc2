"""Write sections of docs/benchmarks.md. Each command replaces its own section only."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def write(section: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace a section with `text`, or append a new one."""
    before = document.read_text() if document.exists() else "# Benchmarks\n"
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    after = f"{begin}\n{text.strip()}\n{end}"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if found.search(before):
        document.write_text(found.sub(lambda _: after, before))
    else:
        document.write_text(f"{before.rstrip()}\n\n{after}\n")
