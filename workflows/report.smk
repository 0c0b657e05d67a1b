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


def put_up():
    """Build the site if a paper's page, asked for by name, is newer than it: once, however many were asked for."""
    site = Path(SITE)
    made = [page.stat().st_mtime for page in R.glob("papers/*/.page")]
    if made and (not site.exists() or max(made) > site.stat().st_mtime):
        shell("secondlook collect --scale {SCALE} --results {R} && secondlook report --scale {SCALE} --results {R}")


onsuccess:
    put_up()


onerror:
    put_up()  # what did not fail is worth a page, too
