"""Serving: requests a second and their 99th percentile by number of clients, and memory.

`python -m tests.benchmarks.serving [seconds [longest]]`: a server process with a model of 65
schools, on the loopback alone; each number of clients for `seconds` (5), then 10,000 requests, or
`longest` (120) seconds, while the server's memory is watched. All clients are one process, which
shares the machine with the server: where that is busy, read the server's processor time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from bmm_multitask_learning import datasets
from bmm_multitask_learning.cli import app as command_line

CLIENTS = (1, 8, 64)
MANY = 10_000


def main(seconds: float = 5.0, longest: float = 120.0) -> None:
    """Print a table and the memory at its beginning and end."""
    with tempfile.TemporaryDirectory() as folder:
        rows = fit(Path(folder))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = "from bmm_multitask_learning.cli import app; app()"
        call = [sys.executable, "-c", program, "serve", f"{folder}/model", "--port", str(port)]
        with subprocess.Popen(call, stdout=subprocess.DEVNULL) as server:
            try:
                asyncio.run(
                    measure(f"http://127.0.0.1:{port}", rows, server.pid, seconds, longest)
                )
            finally:
                server.terminate()


def fit(folder: Path) -> list[dict[str, object]]:
    """A model of the demo's schools by the command line, and rows to ask for."""
    exam = datasets.load_exam()
    names = [f"x{d}" for d in range(exam.x.shape[1])]
    lines = [",".join(["school", "score", *names])]
    rows = []
    for x, y, task in zip(exam.x.tolist(), exam.y.tolist(), exam.task.tolist(), strict=True):
        lines.append(",".join(map(str, [exam.tasks[task], y, *x])))
        rows.append({"school": str(exam.tasks[task]), **dict(zip(names, x, strict=True))})
    table = folder / "exam.csv"
    table.write_text("\n".join(lines))
    command_line(
        ["fit", str(table), "--task", "school", "--target", "score", "--out", f"{folder}/model"],
        standalone_mode=False,
    )
    return rows


async def measure(
    url: str, rows: list[dict[str, object]], pid: int, seconds: float, longest: float
) -> None:
    """Print requests a second and latencies, one row a request."""
    limits = httpx.Limits(max_connections=max(CLIENTS))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await started(client)
        print(f"{'clients':>8} {'requests/s':>11} {'median ms':>10} {'p99 ms':>8} {'CPU ms':>8}")
        for number in CLIENTS:
            end = time.monotonic() + seconds
            begun, spent = time.monotonic(), processor(pid)
            times = await ask(client, rows, number, lambda end=end: time.monotonic() < end)
            rate = len(times) / (time.monotonic() - begun)
            median, slowest = 1000 * np.quantile(times, [0.5, 0.99])
            each = 1000 * (processor(pid) - spent) / len(times)  # of the server, a request
            print(
                f"{number:8d} {rate:11.0f} {median:10.1f} {slowest:8.1f} {each:8.2f}", flush=True
            )
        before = resident(pid)
        left, end = iter(range(MANY)), time.monotonic() + longest
        times = await ask(
            client,
            rows,
            max(CLIENTS),
            lambda: time.monotonic() < end and next(left, None) is not None,
        )
        print(
            f"memory: {before:.0f} MiB, {resident(pid):.0f} MiB after {len(times)} more requests"
        )


async def started(client: httpx.AsyncClient) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            await client.get("/health")
        except httpx.TransportError:
            await asyncio.sleep(0.2)
        else:
            return
    raise TimeoutError("the server did not start within two minutes.")


async def ask(client, rows, number, going) -> list[float]:
    """Seconds of each request of `number` clients, each asking again when it is answered."""
    times: list[float] = []

    async def one(first: int) -> None:
        place = first
        while going():
            begun = time.perf_counter()
            answer = await client.post("/predict/tasks", json={"rows": [rows[place % len(rows)]]})
            answer.raise_for_status()
            times.append(time.perf_counter() - begun)
            place += number

    await asyncio.gather(*(one(first) for first in range(number)))
    return times


def processor(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Memory of a process in MiB, as Linux tells it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main(*map(float, sys.argv[1:3]))
