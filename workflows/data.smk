# Data sets that have to be fetched. One that is not to be had leaves a receipt that says so; its claims stay untested.


rule data:
    """Fetch one data set, check its sha256 and write a receipt."""
    output:
        R / "data" / "{dataset}.json",
    localrule: True
    params:
        present=lambda w: fetching.is_present(w.dataset),
    shell:
        "secondlook data {wildcards.dataset} --receipt {output} --allow-missing"


def receipts(names):
    """Receipts of the data sets that do not ship with a package."""
    return [str(R / "data" / f"{name}.json") for name in names if sources.DATASETS[name].files]
