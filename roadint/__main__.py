"""`python -m roadint`."""

from roadint.cli.main import main

main()
