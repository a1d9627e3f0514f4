"""From a run to a repository on the Hub: card, check, push; and conversion of the original's checkpoints."""
