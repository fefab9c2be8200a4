"""The command line, put together: `lamplighter …` or `python -m lamplighter …`."""

from .agent.cli import app, main, saes_app
from .agent.review_cli import review_app
from .experiments.command import WithParts, experiment, saes_train

saes_app.command("train")(saes_train)
app.add_typer(review_app, name="review")
app.command(cls=WithParts)(experiment)

if __name__ == "__main__":
    main()

__all__ = ["main"]
