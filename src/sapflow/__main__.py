"""`python -m sapflow` is the command `sapflow`."""

from sapflow.cli import main

if __name__ == "__main__":
    main()
