# What one job runs is the scale's choice: a batch of papers, an experiment, or a seed of it. The longest chains go first
# (models, then experiments, then tables), so that the papers' notebooks fill the gaps at the end.
import csv


def config_of(slug, experiment, seed=None):
    """Digest of all settings that decide an experiment's numbers: when it changes, the job runs again."""
    job = plainly(runner.Job.of, PAPERS[slug], experiment, SCALE, seed)
    return provenance.config_sha256(job.config)


def code_of(slug):
    """Digest of the room's code, figures aside: it decides an experiment's numbers as well."""
    return digest(*sorted(p for p in registry.room(PAPERS[slug]).glob("*.py") if p.name != "figures.py"))


def needs_of(slug, experiment, seed=None):
    """Code, data receipts and reference models that an experiment reads."""
    paper = PAPERS[slug]
    yield from (room(slug, name) for name in ("method.py", "experiment.py"))
    yield from receipts(paper.data(experiment, SCALE))
    for name, kind in paper.experiments[experiment].models.items():
        seeds = range(paper.at(SCALE)[experiment].seeds) if seed is None else [seed]
        yield from (str(R / "models" / name / f"seed{k}.json") for k in (seeds if kind == "per-seed" else [0]))


def last_seconds():
    """{paper: seconds} of computing in the suite's own last measured run at this scale; empty where there is none."""
    table, seconds = Path(workflow.basedir) / "results" / "reference" / SCALE / "runs.csv", {}
    if table.exists():
        with table.open() as lines:
            for row in csv.DictReader(lines):
                seconds[row["paper"]] = seconds.get(row["paper"], 0) + float(row["cpu_s"] or 0)
    return seconds


if SETTINGS["job"] == "batch":
    LAST = last_seconds()
    for batch in BATCHES:
        BATCH_SETTINGS = [s for slug in batch for s in PAPERS[slug].at(SCALE).values()]

        rule:
            name:
                f"experiments_of_{batch[0]}"
            input:
                sorted({need for slug in batch for e in PAPERS[slug].at(SCALE) for need in needs_of(slug, e)}),
            output:
                [part for slug in batch for kind in ("measurements", "runs") for part in parts(kind, slug)],
            priority: 5 + int(sum(LAST.get(slug, 0) for slug in batch))  # the longest first
            resources:
                gpu=SETTINGS["gpus"],
                mem_mb=growing(max(s.mem_mb for s in BATCH_SETTINGS)),
                runtime=growing(max(s.runtime for s in BATCH_SETTINGS)),  # each takes seconds of it
            params:
                slug=batch[0],
                others=[f"--also {slug}" for slug in batch[1:]],
                config=[config_of(slug, e) for slug in batch for e in PAPERS[slug].at(SCALE)],
                code=[code_of(slug) for slug in batch],
            shell:
                "secondlook run {params.slug} {params.others} --scale {SCALE}"
                " --results {R} --device {SETTINGS[device]} --quiet --keep-going"

else:

    rule experiment:
        """Run one experiment, or one seed of it, and keep its measurements and their provenance."""
        input:
            lambda w: sorted(set(needs_of(w.paper, w.experiment, seed_of(w)))),
        output:
            R / "measurements" / "{paper}" / "{experiment}{seed}.parquet",
            R / "runs" / "{paper}" / "{experiment}{seed}.parquet",
        priority: 5
        threads: 1
        resources:
            gpu=SETTINGS["gpus"],
            mem_mb=lambda w, attempt: settings_of(w).mem_mb * attempt,
            runtime=lambda w, attempt: (settings_of(w).runtime + 5) * attempt,  # the command stops by itself before
        params:
            seed=lambda w: "" if seed_of(w) is None else f"--seed {seed_of(w)}",
            config=lambda w: config_of(w.paper, w.experiment, seed_of(w)),
            code=lambda w: code_of(w.paper),
        shell:
            "secondlook run {wildcards.paper} {wildcards.experiment} --scale {SCALE} {params.seed}"
            " --results {R} --device {SETTINGS[device]} --quiet --keep-going"
