"""`python -m secondlook` is the `secondlook` command."""

from secondlook.cli import main

main()
