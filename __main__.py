"""The command line, put together: `lamplighter …` or `python -m lamplighter …`."""

from .agent.cli import main

if __name__ == "__main__":
    main()

__all__ = ["main"]
