"""`python -m headworks` is the command line."""

from headworks.cli import main

main()
