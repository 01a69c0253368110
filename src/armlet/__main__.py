"""`python -m armlet`: the command line."""

from armlet.cli.main import main

main()
