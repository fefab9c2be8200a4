"""Says: every word that is sent to a language model, one Markdown file a decision."""
