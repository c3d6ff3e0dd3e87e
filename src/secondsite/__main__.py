"""`python -m secondsite` is the command `secondsite`."""

from secondsite.cli import main

if __name__ == "__main__":
    main()
