"""`python -m ladle` is the `ladle` command."""

from ladle.cli import main

main()
