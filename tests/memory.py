"""Peak memory of a call, in a fresh process."""

import subprocess
import sys
from typing import Any

SCRIPT = """
import re, sys, torch
from pathlib import Path
from torch import nn
from secondlook.curvature import {function}
torch.manual_seed(0)
torch.set_num_threads(1)
def peak():  # kB; getrusage would start at the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
def net(w): return nn.Sequential(nn.Linear(64, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 10))
def run(model, n, **limit):
    x, y = torch.randn(n, 64), torch.randint(0, 10, (n,))
    before = peak()
    {function}(model, "cross_entropy", (x, y), **{options!r}, **limit)
    return (peak() - before) / 1e3
run(net(8), 50)  # loads what is loaded late
print(run(net(200), 4000, memory=float(sys.argv[1])))
"""


def grown(function: str, limit: float, **options: Any) -> float:
    """MB that `secondlook.curvature.FUNCTION` adds for 55,000 parameters and 4,000 points under `memory=limit`."""
    script = SCRIPT.format(function=function, options=options)
    done = subprocess.run([sys.executable, "-c", script, str(limit)], capture_output=True, text=True, check=True)
    return float(done.stdout)
