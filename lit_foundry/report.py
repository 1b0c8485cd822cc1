"""Show runs side by side on one page that stands alone."""

from lit_foundry.usage import OWN_HELP, Parser


def main(args: list[str]) -> None:
    """Write the page, and say where it is."""
    parser = Parser("report", OWN_HELP["report"])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", metavar="DIR")
    parser.parse_args(args)
    raise NotImplementedError
