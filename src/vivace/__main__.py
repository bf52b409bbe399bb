"""`python -m vivace` is `vivace`."""

from vivace.cli import program

if __name__ == "__main__":
    program()
