"""The benchmarks count correctly and write their sections; speeds are not asserted."""

import asyncio
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from math import inf
from pathlib import Path

import pytest

from bench import document, load, report, soak
from bench.__main__ import Sizes, measure, section
from bench.engines import Timers
from bench.measures import Bench, Receiver, delivery, many
from bench.profile import Profile, parts_of


def test_writing_a_section_keeps_the_rest(tmp_path: Path) -> None:
    """A section is replaced, or appended if it is new; the rest of the document is kept."""
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\nWords.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nMore.\n")
    document.write("a", "| new \\1 |", path)
    document.write("b", "first\n", path)
    document.write("b", "second\n", path)
    assert path.read_text() == (
        "# Benchmarks\n\nWords.\n\n<!-- begin a -->\n| new \\1 |\n<!-- end a -->\n\nMore.\n"
        "\n<!-- begin b -->\nsecond\n<!-- end b -->\n"
    )


def test_a_profile_splits_processor_time_by_thread_and_part() -> None:
    """A sample counts for the part of its innermost function that belongs to one."""
    parts = {"SQLite": ("here/sqlite",), "HTTP": ("here/server", "http/"), "sender": ("here/",)}
    stacks = [
        'thread (7): "http";run (/x/here/server.py:1);_add (/x/here/sqlite/w.py:2) 3',
        'thread (7): "http";run (/x/here/server.py:1);loads (/lib/elsewhere.py:3) 1',
        'thread (8): "senders";send (/x/here/sender.py:1) 4',
        'thread (8): "senders";main (/x/unknown.py:1) 2',
    ]
    samples = parts_of(stacks, parts)
    assert samples == {
        ("http", "SQLite"): 3, ("http", "HTTP"): 1,
        ("senders", "sender"): 4, ("senders", "other"): 2,
    }  # fmt: skip
    table = Profile(operations=10, seconds=0.001, samples=samples).table("One create")
    assert "| thread: senders | 60 | 60% |" in table
    assert "| part: SQLite | 30 | 30% |" in table


SIZES = Sizes(
    warm_up=10,
    creates=20,
    low=10,
    small=10,
    large=20,
    mixed=20,
    mixed_rate=40,
    pending=20,
    recovery=20,
    many=50,
    ahead=0.5,
    outage=0.5,
    settle=0.1,
)

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


@needs_node
@pytest.mark.e2e
def test_bench_in_miniature(tmp_path: Path) -> None:
    """A small benchmark has every figure; each timer arrives once and none early."""
    with Receiver() as receiver:
        results = measure([Timers], receiver, tmp_path, SIZES, rounds=1)
        million = many(SIZES.many, receiver, tmp_path, SIZES.settle)
    figures = results.figures["Timers"]
    assert {row.key for row in report.ROWS} <= figures.keys()
    for fault in ("missing", "early", "duplicates", "recovery.missing", "recovery.early"):
        assert not any(figures[fault]), fault
    assert figures["recovery.first"] < [inf]
    counts = [len(results.late[name]["Timers"]) for name in ("low", "small", "large")]
    assert counts == [SIZES.low, SIZES.small, SIZES.large]
    text = section(results, {"Timers": Timers.version()}, ["2 cores"], million)
    assert all(row.title in text for row in report.ROWS)
    assert "{" not in text


def test_compares_arrivals_with_their_deadlines() -> None:
    """Duplicate, early and missing webhooks are counted; unknown ids are ignored."""
    deadlines = {"once": 1000, "twice": 1500, "early": 2000, "never": 2000}
    arrivals = [("once", 1010.0), ("twice", 1600.0), ("other", 0.0), ("early", 1999.5)]
    found = delivery(deadlines, [*arrivals, ("twice", 3000.0)])
    assert found.late == [-0.5, 10, 100]
    assert (found.missing, found.early, found.duplicates) == (1, 1, 1)
    assert found.seconds == pytest.approx(0.9995)


def test_ratio_above_one_means_better() -> None:
    """A ratio above 1 means better, for rates as for times.

    There is none beside a zero, or beside the dash of a measure that an engine skips.
    """
    rows = [
        report.Row("rate", "Rate", True),
        report.Row("late", "Late"),
        report.Row("lost", "Lost"),
    ]
    results: Mapping[str, Mapping[str, list[float]]] = {
        "A": {"rate": [10, 30, 20], "late": [1.5], "lost": [0]},
        "B": {"rate": [10], "late": [3], "lost": [1]},
        "C": {"late": [1]},
    }
    text = report.table(results, {"A": "synced", "B": "not", "C": "not"}, rows)
    assert text.splitlines() == [
        "|  | A<br>(synced) | B<br>(not) | ratio | C<br>(not) | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| Rate | 20 (10–30) | 10 | 2 × | – |  |",
        "| Late | 1.50 | 3 | 2 × | 1 | 0.67 × |",
        "| Lost | 0 | 1 |  | – |  |",
    ]


def test_response_time_includes_the_wait_for_a_connection() -> None:
    """A server that delays later requests does not look faster."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while await reader.readline():
                await reader.readuntil(b"\r\n\r\n{}")
                await asyncio.sleep(0.02)
                for piece in (b"HTTP/1.1 201 Created\r\nContent-Len", b"gth: 2\r\n\r\nO", b"K"):
                    writer.write(piece)
                    await writer.drain()

    async def ask() -> list[load.Response]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            make = partial(load.post, "/", b"{}")
            send = partial(load.send, port, 20, make, rate=1000, connections=2)
            return await asyncio.to_thread(send)

    responses = asyncio.run(ask())
    assert [(answer.status, answer.body) for answer in responses] == [(201, b"OK")] * 20
    # The last was due after 19 ms, and went out behind nine that took 20 ms each.
    assert responses[-1].seconds > 0.18


def test_a_connection_that_the_server_closes_is_an_error() -> None:
    """A server that closes a connection without a response ends the load."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.to_thread(load.send, port, 1, partial(load.get, "/"))

    with pytest.raises(ConnectionError):
        asyncio.run(ask())


@needs_node
@pytest.mark.e2e
def test_the_receiver_records_the_ids_of_all_engines() -> None:
    """A webhook's id is in its webhook-id, or in Quirrel's own header."""
    began = time.time()
    with Receiver() as receiver:
        for header in ("Webhook-Id: a", 'x-quirrel-meta: {"id":"b","count":1}'):
            request = f"POST / HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Length: 2\r\n\r\n{{}}"
            [response] = load.send(receiver.port, 1, partial(load.Request, request.encode()))
            assert response.status == 200
        arrivals = receiver.forget()
        assert receiver.arrivals() == []
    assert [id for id, _ in arrivals] == ["a", "b"]
    assert all(began * 1000 - 1 < at < time.time() * 1000 + 1 for _, at in arrivals)


@needs_node
@pytest.mark.e2e
def test_the_receiver_reads_a_webhook_in_pieces() -> None:
    """A webhook counts once its body is whole; one that asks for it closes the connection.

    The response says so too. Otherwise Quirrel would send its next webhook there, and lose it.
    """
    head = b"POST / HTTP/1.1\r\nwebhook-id: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    with Receiver() as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
            for piece in (head[:30], head[30:], b"{}"):
                connection.sendall(piece)
                time.sleep(0.02)
            assert receiver.arrivals() == []
            connection.sendall(b"{}")
            response = b"".join(iter(lambda: connection.recv(1000), b""))
        assert response.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        assert [id for id, _ in receiver.arrivals()] == ["a"]


@needs_node
@pytest.mark.e2e
def test_soak_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small soak each timer arrives once and none early; each sample has each figure."""
    monkeypatch.setattr(soak, "LONGEST", 500)
    with Receiver() as receiver, Timers(tmp_path / "data", {"RETENTION": "0"}) as engine:
        soaked = soak.Soak(Bench(engine, receiver), engine, rate=20)
        samples = soak.soak(soaked, seconds=2)
        text = soak.section(soaked, samples, 2, "2 cores")
    assert soaked.faults == []
    assert soaked.arrived == 40
    assert [sample.keys() for sample in samples] == [{flat.key for flat in soak.FLAT}] * 2
    assert all(flat.title in text for flat in soak.FLAT)


def test_soak_reports_rising_figures() -> None:
    """A figure is reported if its median grows by more than its ratio; a blip is ignored."""
    flat = {flat.key: flat.floor for flat in soak.FLAT}
    blip = {key: 100 * value for key, value in flat.items()}
    assert soak.rising([flat, flat, flat, flat, blip, flat]) == []
    for one in soak.FLAT:
        risen = flat | {one.key: one.floor * one.ratio * 1.01}
        [line] = soak.rising([flat, flat, risen, risen])
        assert line.startswith(f"{one.title}: from ")
    assert soak.rising([dict.fromkeys(flat, 0.0)] * 2 + [flat] * 2) == []


def test_soak_reports_duplicate_and_early_webhooks() -> None:
    """Duplicate and early webhooks are faults; undelivered timers stay pending."""
    engine = Timers(Path("nowhere"))
    pending = {"a": 1000, "b": 1000, "c": 1000}
    soaked = soak.Soak(Bench(engine, Receiver()), engine, rate=1, pending=pending)
    soaked._settle([("a", 1001.0), ("a", 1002.0), ("b", 999.0)])
    assert soaked.faults == ["a arrived twice", "one arrived early"]
    assert soaked.pending == {"c": 1000}
