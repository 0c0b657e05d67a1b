"""A temporary copy of the checkout, in which the real DAG runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


class Copy:
    """A copy of what git tracks or would track, with commands that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, folder / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        """Run a command of the environment in the copy."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PYTHONPATH": str(self.folder / "src"), "PATH": path} | env
        for name in ("OMP_NUM_THREADS", "SECONDLOOK_GIT_STATE"):
            environment.pop(name, None)
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    def snakemake(self, *targets: str, check: bool = True, **config: str) -> subprocess.CompletedProcess:
        pairs = [f"{k}={v}" for k, v in ({"scale": "smoke"} | config).items()]
        return self.run("snakemake", "--cores", "2", "--config", *pairs, "--", *targets, check=check)
