"""`python -m ltx2_train` is the same as the installed `ltx2-train` command."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
