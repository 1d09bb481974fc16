"""`python -m roadint`."""

from roadint.cli import main

main()
