"""`python -m qualivision.cli`."""

from qualivision.cli import main

if __name__ == "__main__":
    main()
