"""`python -m tools.language [ROOT]`: figures about the language of a checkout.

Prints sentence lengths, the rates of certain pronouns and closures, and the longest Python files.
Lines are non-blank lines. It enforces nothing. ROOT is a checkout, by default this one.
"""

import ast
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")
SHIPPED = ("app.py", "chalicelib", "standalone", "embedded", "cli", "infra")
"""Files and folders of the code that is run or deployed, in this checkout or an older one."""

LONGEST = 10

PRONOUNS = ("what", "who", "whoever", "whatever", "those", "of which")
PRONOUN = re.compile(rf"\b(?:{'|'.join(PRONOUNS)})\b", re.IGNORECASE)

GENERATED = re.compile(r"<!-- (begin (\w+)|figures) -->.*?<!-- end (\2|of figures) -->", re.DOTALL)
CODE_BLOCK = re.compile(r"^ *```.*?^ *```[^\n]*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
NOT_PROSE = re.compile(r"^(\s*\||#|\s*\[[^\]]+\]:).*$", re.MULTILINE)
"""Tables, headings and link definitions."""

ITEM = re.compile(r"^\s*(?:[*+-]|\d+\.)\s+", re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
SENTENCE_END = re.compile(r"(?<=[.!?])[*_)\"”]*\s+(?=[*_(\"“]*[A-Z0-9`])|\n\s*\n")
WORD = re.compile(r"[^\W_][\w'’./-]*")


def main() -> None:
    """Print the figures of the checkout that the command line names."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    print(report(root))  # noqa: T201  # the command's output


def report(root: Path) -> str:
    """Return the figures of a checkout as lines of text."""
    shipped = [path for name in SHIPPED for path in _python(root / name)]
    documents = sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)})
    lines = sum(_line_count(path) for path in shipped)
    trees = [ast.parse(path.read_text()) for path in shipped]
    documented = [length for path in documents for length in sentence_lengths(_prose(path))]
    docstrings = [n for tree in trees for text in _docstrings(tree) for n in sentence_lengths(text)]
    pronouns = Counter(word for path in shipped for word in _pronouns(path))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lambdas = sum(isinstance(node, ast.Lambda) for node in nodes)
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    partials = called.count("partial") + called.count("functools.partial")
    longest = sorted(((_line_count(path), path) for path in _python(root)), reverse=True)[:LONGEST]
    return "\n".join(
        [
            f"{'Shipped code':<24}{lines:>8,} non-blank lines in {len(shipped)} files",
            f"{'Documents':<24}{_spread(documented)}",
            f"{'Docstrings':<24}{_spread(docstrings)}",
            f"{'Pronouns':<24}{_rate(pronouns.total(), lines)}",
            *(f"  {word:<22}{_rate(pronouns[word], lines)}" for word in PRONOUNS),
            f"{'Lambdas':<24}{_rate(lambdas, lines)}",
            f"{'Partials':<24}{_rate(partials, lines)}",
            "Longest Python files",
            *(f"  {count:>6,}  {path.relative_to(root)}" for count, path in longest),
        ]
    )


def sentence_lengths(text: str) -> list[int]:
    """Return the number of words in each sentence; inline code counts as one word."""
    plain = LINK.sub(r"\1", INLINE_CODE.sub("code", text))
    return [n for sentence in SENTENCE_END.split(plain) if (n := len(WORD.findall(sentence)))]


def _spread(lengths: Sequence[int]) -> str:
    p90 = quantiles(lengths, n=10, method="inclusive")[-1]
    return f"{median(lengths):>8.0f} median, {p90:.0f} p90 words in {len(lengths):,} sentences"


def _rate(count: int, lines: int) -> str:
    return f"{1000 * count / max(lines, 1):>8.1f} per 1,000 lines ({count})"


def _python(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [it for it in found if not any(part.startswith(".") for part in it.parts)]


def _line_count(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def _prose(path: Path) -> str:
    text = path.read_text()
    for pattern in (GENERATED, CODE_BLOCK, COMMENT):
        text = pattern.sub("", text)
    return ITEM.sub("\n\n", NOT_PROSE.sub("\n", text))


def _docstrings(tree: ast.AST) -> list[str]:
    """Return each string that is a statement: docstrings, and the texts under constants."""
    nodes = [it.value for it in ast.walk(tree) if isinstance(it, ast.Expr)]
    return [it.value for it in nodes if isinstance(it, ast.Constant) and isinstance(it.value, str)]


def _pronouns(path: Path) -> list[str]:
    """Return the pronouns in the comments and strings of a Python file, in lower case."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    with path.open("rb") as file:
        texts = [it.string for it in tokenize.tokenize(file.readline) if it.type in kinds]
    return [found.lower() for text in texts for found in PRONOUN.findall(text)]


if __name__ == "__main__":
    main()
