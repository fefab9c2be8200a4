"""The command line, put together: `lamplighter …` or `python -m lamplighter …`."""

from .agent.cli import app, main
from .experiments.command import WithParts, experiment

app.command(cls=WithParts)(experiment)

if __name__ == "__main__":
    main()

__all__ = ["main"]
