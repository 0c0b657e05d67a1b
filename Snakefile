# Second Look: the table of contents. Each stage stands in its own file; every job is one line of the `secondlook` command.
from snakemake.utils import min_version

min_version("9.0")


include: "workflows/common.smk"
include: "workflows/data.smk"
include: "workflows/models.smk"
include: "workflows/experiments.smk"
include: "workflows/tables.smk"
include: "workflows/notebooks.smk"
include: "workflows/benchmarks.smk"
include: "workflows/report.smk"
include: "workflows/targets.smk"


rule all:
    default_target: True
    input:
        SITE,
