"""`python -m peft_space`: the same as the command `peft-space`."""

from peft_space.cli.main import entry_point, main

__all__ = ["main"]

if __name__ == "__main__":
    entry_point()
