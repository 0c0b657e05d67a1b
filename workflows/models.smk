# Reference models that several papers stand on, each trained once.


rule model:
    """Train one reference model from one seed."""
    input:
        lambda w: str(registry.PACKAGE / "problems" / "zoo" / f"{w.model.replace('-', '_')}.py"),
    output:
        R / "models" / "{model}" / "seed{k}.json",
    priority: 10  # several papers wait for each model
    threads: 1
    resources:
        gpus=SETTINGS["gpus"],
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    shell:
        "secondlook train {wildcards.model} --scale {SCALE} --seed {wildcards.k}"
        " --results {R} --device {SETTINGS[device]}"
