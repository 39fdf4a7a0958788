"""Texts a second of `encode` against sentence-transformers, on the same model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer

from bmm_multitask_learning import datasets
from bmm_multitask_learning.backbones import SentenceEncoder
from bmm_multitask_learning.backbones.pretrained import locate

from .record import markdown, write

TEXTS, ROUNDS, BATCH = 1000, 3, 32
NAME = "all-MiniLM-L6-v2"
PAGE = """
**Encoding text**: {texts} reviews of the 16 domains, every {stride}th of all, in their order;
{tokens:.0f} tokens on average and at most {longest}, all-MiniLM-L6-v2, batches of {batch}. Each
round takes each encoder once, in turn; the median of {rounds} rounds, and the smallest and largest
ratio of a round. Times and ratios are of the processor, which other work beside does not lengthen.
Largest difference of an entry to sentence-transformers' beside.

{table}
"""


def main() -> None:
    """Encode the same texts by both, in turn."""
    texts = datasets.fetch_reviews().texts
    stride = len(texts) // TEXTS
    texts = list(texts[::stride][:TEXTS])
    peer = SentenceTransformer(str(locate(NAME)))
    ours = {p: SentenceEncoder.from_pretrained(NAME, precision=p) for p in ("float32", "bf16")}
    runs: dict[str, Callable[[list[str]], object]] = {
        "sentence-transformers": lambda t: peer.encode(t, batch_size=BATCH),
        "SentenceEncoder": lambda t: ours["float32"].encode(t, batch_size=BATCH, progress=False),
        "SentenceEncoder, bf16": lambda t: ours["bf16"].encode(
            t, batch_size=BATCH, progress=False
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    features = {}
    for run in runs.values():
        run(texts[:BATCH])
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            features[name] = np.asarray(run(texts))
            seconds[name].append(time.process_time() - start)
    reference = "sentence-transformers"
    rows = []
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[reference], times, strict=True)]
        rows.append(
            {
                "encoder": name,
                "seconds": statistics.median(times),
                "texts_per_second": len(texts) / statistics.median(times),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "difference": float(np.abs(features[name] - features[reference]).max()),
            }
        )
    frame = pd.DataFrame(rows)
    lengths = (ours["float32"].tokens(texts)[:, 0] >= 0).sum(-1).double()
    facts = {"texts": len(texts), "stride": stride, "rounds": ROUNDS, "batch": BATCH}
    shown = frame.assign(
        seconds=frame["seconds"].map("{:.1f}".format),
        texts_per_second=frame["texts_per_second"].map("{:.1f}".format),
        difference=frame["difference"].map("{:.0e}".format),
        ratio=[
            f"{r:.2f} ({a:.2f}–{b:.2f})"
            for r, a, b in frame[["ratio", "ratio_min", "ratio_max"]].to_numpy()
        ],
    ).drop(columns=["ratio_min", "ratio_max"])
    page = PAGE.format(
        **facts, tokens=float(lengths.mean()), longest=int(lengths.max()), table=markdown(shown)
    )
    write("encode", frame, page, {**facts, "model": NAME, "threads": torch.get_num_threads()})
