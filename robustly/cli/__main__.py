"""`python -m robustly.cli`: the command line without its script."""

from robustly.cli import main

if __name__ == "__main__":
    main()
