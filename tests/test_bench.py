"""bench/: what the benchmarks write and how they count; the speeds themselves are not asserted."""

from pathlib import Path

from bench import document


def test_a_command_rewrites_its_own_section_only(tmp_path: Path) -> None:
    """A section is replaced whole, the first time added, and all else stays as it was."""
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\nWords.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nMore.\n")
    document.write("a", "| new \\1 |", path)
    document.write("b", "first\n", path)
    document.write("b", "second\n", path)
    assert path.read_text() == (
        "# Benchmarks\n\nWords.\n\n<!-- begin a -->\n| new \\1 |\n<!-- end a -->\n\nMore.\n"
        "\n<!-- begin b -->\nsecond\n<!-- end b -->\n"
    )
