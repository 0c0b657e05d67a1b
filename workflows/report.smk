# The static site.


rule site:
    """Build the site: scoreboard, a page a paper, a page a family."""
    input:
        tables=rules.tables.output,
        notebooks=expand(R / "notebooks" / "{paper}.ipynb", paper=PAPERS),
        scoreboard=rules.scoreboard_notebook.output,
    output:
        SITE,
    localrule: True
    threads: 1
    shell:
        "secondlook report --scale {SCALE} --results {R}"
