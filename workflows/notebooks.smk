# Papermill notebooks: one a paper, one a family, and the scoreboard.


rule notebook:
    """Execute the notebook that compares one paper's results with the published numbers."""
    input:
        template="notebooks/paper.ipynb",
        tables=rules.assess.output,
    output:
        report(
            R / "notebooks" / "{paper}.ipynb",
            caption="captions/notebook.rst",
            category="Notebooks",
        ),
    group:
        "pages"
    threads: 1
    shell:
        "secondlook notebook paper {wildcards.paper} --scale {SCALE} --results {R}"


rule family_notebook:
    input:
        template="notebooks/family.ipynb",
        tables=rules.tables.output,
    output:
        report(
            R / "notebooks" / "families" / "{family}.ipynb",
            caption="captions/notebook.rst",
            category="Notebooks",
        ),
    group:
        "overviews"
    threads: 1
    shell:
        "secondlook notebook family {wildcards.family} --scale {SCALE} --results {R}"


rule scoreboard_notebook:
    input:
        template="notebooks/scoreboard.ipynb",
        tables=rules.tables.output,
    output:
        report(
            R / "notebooks" / "scoreboard.ipynb",
            caption="captions/notebook.rst",
            category="Notebooks",
        ),
    priority: 2
    group:
        "overviews"
    threads: 1
    shell:
        "secondlook notebook scoreboard --scale {SCALE} --results {R}"


ruleorder: scoreboard_notebook > notebook
