"""Format the figures as a table and a plot, and describe the machine."""

import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.measures import percentiles


class Row(NamedTuple):
    """A row of the table: the key of its figure, its title, and whether more is better."""

    key: str
    title: str
    more_is_better: bool = False


LATENESS = (("p50", "p50, ms"), ("p99", "p99, ms"), ("max", "max, ms"))

DRAINED = ("drained", "delivered per second")

MIXED = "1,000 creates and 1,000 webhooks a second for 10 s"

ROWS = (
    Row("creates.rate", "**Creating**, 32 connections: per second", True),
    Row("creates.p50", "p50, ms"),
    Row("creates.p99", "p99, ms"),
    Row("synced.rate", "… with Redis syncing before each response: per second", True),
    *(Row(f"low.{key}", f"**Lateness**, 20 a second: {title}") for key, title in LATENESS),
    *(
        Row(
            f"{burst}.{key}", f"**Lateness**, {count} due in one second: {title}", key == DRAINED[0]
        )
        for burst, count in (("small", "1,000"), ("large", "10,000"))
        for key, title in (*LATENESS, DRAINED)
    ),
    Row("mixed.response", f"**Creating while a burst fires**, {MIXED}: response p99, ms"),
    Row("mixed.late", "lateness p99, ms"),
    Row("pending.bytes", "**Memory** per waiting timer, with 100,000 of them: bytes"),
    Row("recovery.ready", "**After kill -9**: first response, s"),
    Row("recovery.first", "first overdue webhook, s"),
    Row("recovery.missing", "not sent within a minute, of 1,000"),
    Row("recovery.duplicates", "sent twice"),
    Row("missing", "**In all other runs**: not sent"),
    Row("early", "sent before the deadline"),
    Row("duplicates", "sent twice"),
)

Results = Mapping[str, Mapping[str, Sequence[float]]]
"""The figures of each round by engine and key; Timers comes first."""


def table(results: Results, durability: Mapping[str, str], rows: Sequence[Row] = ROWS) -> str:
    """Return medians and ratios in Markdown; above 1 the first engine is better.

    A measure that an engine skips has a dash.
    """
    first, *others = results
    heads = [f"{name}<br>({durability[name]})" for name in results]
    columns = ["", heads[0], *(part for head in heads[1:] for part in (head, "ratio"))]
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    for row in rows:
        ours = results[first][row.key]  # it skips none
        cells = [row.title, _cell(ours)]
        for name in others:
            theirs = results[name].get(row.key, ())
            cells += [_cell(theirs), _ratio(ours, theirs, row.more_is_better)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle = number(median(values))
    spread = {number(min(values)), number(max(values))}
    return middle if len(spread) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Return a figure with three significant digits."""
    if value == float("inf"):
        return "none"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(ours: Sequence[float], theirs: Sequence[float], more_is_better: bool) -> str:
    if not theirs:
        return ""
    above, below = median(ours), median(theirs)
    if not more_is_better:
        above, below = below, above
    return f"{above / below:.2g} ×" if above and 0 < below < float("inf") > above else ""


def processor() -> str:
    """Return the name of the processor, or of its architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def machine(folder: Path) -> str:
    """Describe the machine: processor, memory, fsync time and load average."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    p50, p99 = percentiles(_fsyncs(folder))
    return (
        f"{os.cpu_count()} cores ({processor()}), "
        f"{memory:.0f} GB, Linux {platform.release().split('-')[0]}; an fsync of 4 KB takes "
        f"{number(p50)} ms (p99 {number(p99)} ms); load average before: {os.getloadavg()[0]:.1f}"
    )


def _fsyncs(folder: Path) -> list[float]:
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(500):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return took


def plot(late: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot the percentiles of lateness in milliseconds for each measurement and engine."""
    # Only the benchmark environment has matplotlib.
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 3.2), layout="tight")
    axes = figure.subplots(1, len(late), sharey=True, squeeze=False)[0]
    for axis, (title, engines) in zip(axes, late.items(), strict=True):
        for name, values in engines.items():
            axis.plot(range(101), curve(values), label=name)
        axis.set(title=title, yscale="log", xlabel="% of the timers")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("lateness, ms")
    axes[0].legend(frameon=False)
    # Keep text as text, and make the file reproducible.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "timers"}):
        figure.savefig(path, metadata={"Date": None})


def curve(values: Sequence[float]) -> list[float]:
    """Return percentiles 0 to 100, at least 0.1 each for the logarithmic axis."""
    ordered = sorted(values)
    return [max(0.1, ordered[share * (len(ordered) - 1) // 100]) for share in range(101)]
