# Reference models that several papers stand on, each trained once.
def recipe(model):
    return str(registry.PACKAGE / "problems" / "zoo" / f"{model.replace('-', '_')}.py")


def seeds_needed():
    """{model: seeds} of all papers at this scale."""
    needed = {}
    for paper in PAPERS.values():
        for experiment, settings in paper.at(SCALE).items():
            for model, kind in paper.experiments[experiment].models.items():
                needed.setdefault(model, set()).update(range(settings.seeds if kind == "per-seed" else 1))
    return needed


if SETTINGS["job"] == "batch":

    for model, seeds in seeds_needed().items():

        rule:
            name:
                f"train_{model}"
            input:
                recipe(model),
            output:
                [R / "models" / model / f"seed{k}.json" for k in sorted(seeds)],
            priority: 10_000  # several papers wait for each model
            resources:
                gpu=SETTINGS["gpus"],
                mem_mb=growing(4000),
                runtime=growing(60),
            params:
                model=model,
                seeds=[f"--seed {k}" for k in sorted(seeds)],
                code=digest(recipe(model)),
            shell:
                "secondlook train {params.model} {params.seeds} --scale {SCALE}"
                " --results {R} --device {SETTINGS[device]}"

else:

    rule model:
        """Train one reference model from one seed."""
        input:
            lambda w: recipe(w.model),
        output:
            R / "models" / "{model}" / "seed{k}.json",
        priority: 10_000  # several papers wait for each model
        threads: 1
        resources:
            gpu=SETTINGS["gpus"],
            mem_mb=growing(4000),
            runtime=growing(60),
        params:
            code=lambda w: digest(recipe(w.model)),
        shell:
            "secondlook train {wildcards.model} --scale {SCALE} --seed {wildcards.k}"
            " --results {R} --device {SETTINGS[device]}"
