"""`python -m batchrouter` is the command `batchrouter`."""

from batchrouter.cli import main

main()
