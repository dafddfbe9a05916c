"""``update-agentctl config``: the settings of this host, and where each comes from."""

import json
from argparse import ArgumentParser, Namespace

from update_agent import cli
from update_agent.core import settings
from update_agent.host import config


def add_options(verb: ArgumentParser) -> None:
    """Add the options of ``config``."""
    cli.add_settings(verb, config.FOLDERS)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=show)


def show(options: Namespace) -> int:
    """Print every setting with its value and origin; or the first that can't be used."""
    inputs = config.read(options.settings or config.FOLDERS)
    rows = settings.listed(settings.check(inputs), inputs)
    if options.json:
        print(json.dumps({name: {"value": value, "origin": it} for name, value, it in rows}))
    else:
        for name, value, origin in rows:
            print(f"{name:20} {value:32} {origin}")
    return 0
