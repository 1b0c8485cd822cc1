"""What checkpoints and exports score: by what they predict, or by their features."""

from lit_foundry.compress import evaluation, probes


def main(args: list[str]) -> None:
    """Run the command: with ``--by``, of features."""
    by_features = any(word.partition("=")[0] == "--by" for word in args)
    (probes if by_features else evaluation).main(args)
