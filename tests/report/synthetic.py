"""A synthetic results folder, judged by the real judge, with every kind of verdict, hole and hostile text in it."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from secondlook.suite import registry, seals, tables
from secondlook.suite.cards import Paper
from secondlook.suite.judge import judge

EVIL = "<script>alert(1)</script>"


def example() -> Paper:
    """The example card, judged into every verdict by `measure`."""
    return Paper.model_validate(yaml.safe_load((Path(__file__).parent / "example.yaml").read_text(encoding="utf-8")))


def hostile() -> Paper:
    """A paper whose every text tries to break out of its place."""
    claim = {
        "id": "evil",
        "statement": EVIL,
        "source": EVIL,
        "setting": EVIL,
        "unit": EVIL,
        "published": {EVIL: EVIL},
        "scales": ["laptop"],
        "test": {"form": "value", "experiment": "e", "metric": "m", "of": {"method": "ours"}, "is": "above", "than": 0},
        "control": {"why": EVIL, "of": {"method": "theirs"}},
    }
    return Paper.model_validate(
        {
            "slug": "hostile",
            "title": f"{EVIL} & \"quotes\" 'n' $x < {EVIL}$",
            "family": "solvers",
            "year": 2024,
            "code": f"x/y{EVIL}",
            "licence": EVIL,
            "fidelity": "exact",
            "summary": f"{EVIL} [link](javascript:alert(1)) ![i](x) {{{{ 7*7 }}}}",
            "says": f"{EVIL}\n\n<img src=x onerror=alert(1)>\n\n"
            f"$$\\text{{{EVIL}}}$$ $\\href{{javascript:alert(1)}}{{x}}$",
            "equations": [{"name": EVIL, "source": EVIL, "tex": f"\\text{{{EVIL}}}", "code": "<b>"}],
            "metrics": {"m": {"label": EVIL, "unit": EVIL, "step": EVIL}},
            "experiments": {"e": {"about": EVIL, "scales": {"laptop": {"seeds": 5}}}},
            "claims": [claim],
            "figures": {"f": {"caption": EVIL, "redraws": EVIL}},
            "finding": {"text": EVIL},
        }
    )


def _rows(
    paper: str, experiment: str, metric: str, unit: str, values: dict, problem: str = "char-gpt"
) -> list[dict[str, Any]]:
    """Rows of the tidy table from {(method, step): seeds' values}."""
    return [
        {
            "paper": paper,
            "experiment": experiment,
            "problem": problem,
            "method": method,
            "seed": seed,
            "metric": metric,
            "step": step,
            "value": v,
            "unit": unit,
            "status": "ok" if v == v else "diverged",
            "run_id": f"{paper}.{experiment}.0123",
        }
        for (method, step), series in values.items()
        for seed, v in enumerate(series)
    ]


def _run(paper: str, experiment: str, status: str = "ok", note: str = "") -> dict[str, Any]:
    return {
        "run_id": f"{paper}.{experiment}.0123",
        "paper": paper,
        "experiment": experiment,
        "scale": "laptop",
        "seeds": "0 1 2 3 4",
        "status": status,
        "note": note,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": True,
        "started_at": "2025-01-02T03:04:05+00:00",
        "wall_s": 12.3,
        "cpu_s": 11.9,
        "peak_mb": 432.1,
        "device": "cpu",
        "threads": 1,
        "processor": f"A processor {note}",
        "python": "3.11.7",
        "torch": "2.13.0",
        "numpy": "2.3",
        "secondlook": "0.1.0",
        "config_sha256": "ab" * 32,
        "config": json.dumps({"paper": paper, "set": {"bits": [2, 3, 4], "note": note}}),
    }


def measure() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measurements and runs of the two papers."""
    noise = np.random.default_rng(0).normal
    base = {4: 5.4, 3: 6.6, 2: 14.0}
    gain = {
        "gptq": (0.12, 0.7, 2.1),
        "rtn": (0.4, 4.0, 30.0),
        "rtn-copy": (0.4, 4.0, 30.0),
        "greedy": (0.12, 0.68, 0.9),
    }
    perplexity = {
        (m, b): base[b] + g + noise(0, 0.06 * g + 0.01, 5)
        for m, gs in gain.items()
        for b, g in zip((4, 3, 2), gs, strict=True)
    }
    perplexity |= {("float", b): 5.4 + noise(0, 0.01, 5) for b in (2, 3, 4)}
    perplexity["greedy", 2][3] = np.nan
    seconds = {("gptq", np.nan): 1 + noise(0, 0.2, 5), ("greedy", np.nan): 10.5 + noise(0, 3, 5)}
    residual = {
        ("gptq", np.nan): np.abs(noise(0, 2e-14, 5)) + 1e-15,
        ("greedy", np.nan): np.abs(noise(0, 3e-4, 5)) + 1e-6,
    }
    epochs = range(1, 13)
    loss = {(m, e): np.exp(-e / t) + 0.2 + noise(0, 0.01, 5) for m, t in (("gptq", 3), ("rtn", 6)) for e in epochs}
    rows = [
        *_rows("gptq", "accuracy", "perplexity", "ppl", perplexity),
        *_rows("gptq", "accuracy", "loss", "nat", loss),
        *_rows("gptq", "speed", "seconds", "s", seconds, "layer"),
        *_rows("gptq", "speed", "residual", "1", residual, "layer"),
        *_rows("hostile", "e", "m", EVIL, {(m, 1.0): 1 + noise(0, 1, 5) for m in ("ours", "theirs", EVIL)}, EVIL),
    ]
    runs = [
        _run("gptq", "accuracy"),
        _run("gptq", "speed", note="peer X is not installed"),
        _run("gptq", "broken", "failed", "RuntimeError: singular matrix at step 3"),
        _run("hostile", "e", note=EVIL),
    ]
    return tables.conform(pd.DataFrame(rows), tables.MEASUREMENTS), tables.conform(pd.DataFrame(runs), tables.RUNS)


def png(width: int = 8, height: int = 6) -> bytes:
    """A tiny grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + b"\xcc" * width for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def fill(results: Path, papers: dict[str, Paper]) -> None:
    """Write a results folder as the workflow would: tables, figures, models, one benchmark; and two references."""
    measurements, runs = measure()
    folder = results / "tables"
    tables.write(measurements, folder / "measurements.parquet", tables.MEASUREMENTS, csv=True)
    tables.write(runs, folder / "runs.parquet", tables.RUNS, csv=True)
    verdicts = pd.concat([judge(p, "laptop", measurements, runs) for p in papers.values() if p.replicated])
    tables.write(verdicts, folder / "verdicts.parquet", tables.VERDICTS, csv=True)
    for scale in ("gpu", "laptop"):
        _reference(results.parent / "reference" / scale, scale, judge(papers["gptq"], scale, measurements, runs), runs)
    _figures(results / "figures" / "gptq")
    _models(results / "models" / "char-gpt")
    _benchmark(results / "benchmarks")


def _reference(folder: Path, scale: str, verdicts: pd.DataFrame, runs: pd.DataFrame) -> None:
    """A kept reference: on a GPU the claim whose experiment fails here was tested; on a laptop one verdict differed."""
    claim, found = {
        "gpu": ("crashes", {"verdict": "supported", "effect": 0.5, "low": 0.4, "high": 0.6, "reason": ""}),
        "laptop": ("better-than-rtn", {"verdict": "contradicted"}),
    }[scale]
    verdicts.loc[verdicts["claim"] == claim, list(found)] = list(found.values())
    device = {"gpu": "NVIDIA H200", "laptop": f"cpu {EVIL}"}[scale]
    facts = {"scale": scale, "device": device, "dirty": False, "started_at": "2024-11-20T01:02:03+00:00"}
    tables.write(verdicts, folder / "verdicts.parquet", tables.VERDICTS, csv=True)
    tables.write(runs.assign(**facts), folder / "runs.parquet", tables.RUNS, csv=True)


def _figures(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "bits.png").write_bytes(png())
    (folder / "bits.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 200" width="400" height="200"/>'
    )
    (folder / "lost.txt").write_text(f"not drawn: ValueError: {EVIL}\n")


def _models(folder: Path) -> None:
    folder.mkdir(parents=True)
    facts = {"settings": {"width": 64, "note": EVIL}, "metrics": {"bits_per_char": 1.93}, "wall_s": 61.0}
    seals.write_json(folder / "seed0.json", facts | {"sha256": "ab" * 32})
    (folder / "seed1.json").write_text("{broken")


def _benchmark(folder: Path) -> None:
    noise = np.random.default_rng(1).normal
    methods = {"rtn": 1, "obq": -1, "gptq": -0.9}
    rows = []
    for problem in ("digits-mlp", "digits-cnn"):
        values = {(m, np.nan): np.exp(noise(centre, 0.2, 5)) for m, centre in methods.items()}
        rows += _rows("benchmark-compression", "benchmark", "output_error", "1", values, problem)
    run = _run("benchmark-compression", "benchmark", note=f"peer {EVIL} is not installed")
    for name, table, schema in (("compression", rows, tables.MEASUREMENTS), ("compression.runs", [run], tables.RUNS)):
        tables.write(tables.conform(pd.DataFrame(table), schema), folder / f"{name}.parquet", schema)


def everyone() -> dict[str, Paper]:
    """All known papers as if none but the example were replicated."""
    empty = {"experiments": {}, "metrics": {}, "figures": {}, "claims": [], "equations": [], "finding": None}
    known = {slug: p.model_copy(update=empty) for slug, p in registry.papers().items()}
    return known | {"gptq": example()}
