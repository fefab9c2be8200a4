"""The command line, put together: `lamplighter …` or `python -m lamplighter …`."""

from .agent.cli import app, main
from .experiments.command import about, experiment

app.command(epilog=about())(experiment)

if __name__ == "__main__":
    main()

__all__ = ["main"]
