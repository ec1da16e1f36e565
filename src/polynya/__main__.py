"""`python -m polynya`."""

from .cli import main

main()
