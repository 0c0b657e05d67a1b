# Tidy tables, verdicts and figures: first paper by paper, then all in one.


rule assess:
    """Collect one paper's measurements, judge its claims and draw its figures."""
    input:
        card=lambda w: room(w.paper, "card.yaml"),
        figures=lambda w: room(w.paper, "figures.py"),
        measurements=lambda w: parts("measurements", w.paper),
        runs=lambda w: parts("runs", w.paper),
    output:
        tables=expand(
            R / "papers" / "{{paper}}" / "{table}.parquet",
            table=["measurements", "runs", "verdicts"],
        ),
        figures=report(
            directory(R / "figures" / "{paper}"),
            patterns=["{name}.png"],
            caption="captions/figure.rst",
            category="Figures",
            subcategory="{paper}",
            labels={"figure": "{name}"},
        ),
    priority: 2
    group:
        "pages"
    threads: 1
    params:
        code=lambda w: digest(room(w.paper, "card.yaml"), room(w.paper, "figures.py")),
    shell:
        "secondlook assess {wildcards.paper} --scale {SCALE} --results {R}"


rule tables:
    """All papers' measurements, runs and verdicts, as Parquet and CSV."""
    input:
        expand(
            R / "papers" / "{paper}" / "{table}.parquet",
            paper=PAPERS,
            table=["measurements", "runs", "verdicts"],
        ),
    output:
        expand(
            R / "tables" / "{table}.parquet",
            table=["measurements", "runs", "verdicts"],
        ),
        report(
            expand(
                R / "tables" / "{table}.csv",
                table=["measurements", "runs", "verdicts"],
            ),
            caption="captions/table.rst",
            category="Tables",
        ),
    priority: 2
    localrule: True
    threads: 1
    shell:
        "secondlook collect --scale {SCALE} --results {R}"
