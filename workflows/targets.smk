# Names to ask for: `snakemake gptq` (a paper), `snakemake optimizers` (a family), `snakemake figures`.


rule figures:
    """Every paper's figures."""
    input:
        expand(R / "figures" / "{paper}", paper=PAPERS),


for slug in PAPERS:

    rule:
        name:
            slug
        input:
            R / "notebooks" / f"{slug}.ipynb",
            R / "figures" / slug,
        output:
            touch(R / "papers" / slug / ".page"),
        localrule: True


for family in registry.FAMILIES:

    rule:
        name:
            family
        input:
            [R / "papers" / slug / ".page" for slug, p in PAPERS.items() if p.family == family],
