# What every stage shares: the scale, the papers, and where results lie.
import os
import shutil
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from secondlook.problems import fetching, sources
from secondlook.suite import imports, layout, provenance, recovery, registry, runner, scales
from secondlook.suite.errors import SecondLookError


def plainly(call, *args):
    """Turn one of the suite's errors into one line, without a traceback through this workflow."""
    try:
        return call(*args)
    except SecondLookError as error:
        raise WorkflowError(str(error)) from None


imports.spare_grammars()
SCALE = plainly(scales.scale, str(config.get("scale", "laptop"))).name
SETTINGS = yaml.safe_load(Path(workflow.source_path(f"scales/{SCALE}.yaml")).read_text())
SETTINGS |= {k: v for k, v in config.items() if k not in ("scale", "results")}
validate(SETTINGS, "scales/schema.json")

PAPERS = {slug: p for slug, p in plainly(registry.replicated).items() if p.at(SCALE)}
R = Path(config.get("results", "results")) / SCALE
SITE = str(R / "report" / "index.html")
plainly(layout.claim, R)
if workflow.is_main_process:  # a job on another node reads this file, too
    plainly(recovery.recover, R, Path(".snakemake"))
    recovery.stop_once()

# Jobs find the command of the environment that snakemake runs in, activated or not.
here = str(Path(sys.executable).parent)
if shutil.which("secondlook") is None or here not in os.environ.get("PATH", "").split(os.pathsep):
    shell.prefix(f"export PATH={here!r}:$PATH; ")

# One core a job: the same arithmetic, hence the same digits, however many cores there are.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "Agg",
    # Keep freed memory: to give it back and fault it in again took a seventh of the time of array-heavy experiments.
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}
os.environ["SECONDLOOK_GIT_STATE"] = provenance.handed_state()


wildcard_constraints:
    paper="[a-z0-9-]+",
    family="[a-z]+",
    experiment="[a-z0-9_]+",
    seed=r"(\.seed\d+)?",
    model="[a-z0-9-]+",
    k=r"\d+",


def batches(slugs, size):
    """The papers that share a job: at a scale of small papers a start costs more than the work."""
    count = -(-len(slugs) // size)
    return [slugs[i::count] for i in range(count)]


BATCHES = batches(list(PAPERS), SETTINGS["papers"] if SETTINGS["job"] == "batch" else 1)


def jobs_of(slug):
    """The (experiment, seed) pairs of a paper's jobs; no seed where one job takes them all."""
    for experiment, settings in PAPERS[slug].at(SCALE).items():
        if SETTINGS["job"] == "seed":
            yield from ((experiment, f".seed{s}") for s in range(settings.seeds))
        else:
            yield experiment, ""


def parts(kind, slug):
    return [str(R / kind / slug / f"{experiment}{seed}.parquet") for experiment, seed in jobs_of(slug)]


def digest(*files):
    """Digest of sources, as a parameter: a change counts even where a wrong clock hides it from Snakemake."""
    return provenance.files_sha256(map(Path, files))


def growing(amount):
    """A request that grows with every attempt: what was killed for want of memory or time gets more of it."""
    return lambda wildcards, attempt: amount * attempt


def settings_of(wildcards):
    return PAPERS[wildcards.paper].at(SCALE)[wildcards.experiment]


def seed_of(wildcards):
    return int(wildcards.seed.removeprefix(".seed")) if wildcards.seed else None


def room(slug, name):
    return str(registry.room(PAPERS[slug]) / name)
