"""`python -m e2rank`: the command line."""

from e2rank.cli import main

main()
