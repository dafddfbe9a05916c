"""What README.md says of the code, from the code: its modules, who imports whom, the lifecycle.

``python -m tests.diagrams`` draws them anew; a test fails while one is behind the code.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import sections
from tests.test_house import MODULES, PACKAGE, imports, part_of
from update_agent.core.lifecycle import TABLE, Event, State

README = Path(__file__).parents[1] / "README.md"

_PARTS = {
    "agent": "agent/<br>update-agentd",
    "writer": "writer/<br>update-agent-writer",
    "ctl": "ctl/<br>update-agentctl",
    "publish": "publish/<br>update-publish, update-agent-image",
    "server": "server/<br>update-server",
    "host": "host/<br>effects",
    "core": "core/<br>pure",
    "cli": "cli.py",
    "run": "run.py",
}
"""All but ``errors``, which everybody imports."""


def modules() -> str:
    """Return the modules of ``core`` and ``host``, each with its opening sentence."""
    lines = []
    for part in ("core", "host"):
        lines.append(f"{part}/")
        for module in sorted(PACKAGE.glob(f"{part}/[a-z]*.py")):
            says = ast.get_docstring(ast.parse(module.read_text())) or ""
            lines.append(f"  {module.stem:13} {says.splitlines()[0].replace('``', '')}")
    return "\n".join(["```", *lines, "```"]) + "\n"


def house() -> str:
    """Return who imports whom, as it stands in the modules."""
    arrows = {
        (part_of(module), name.split(".")[1])
        for module in MODULES
        for name in imports(module)
        if name.startswith("update_agent.")
    }
    drawn = [f'  {part}["{label}"]' for part, label in _PARTS.items()]
    drawn += [
        f"  {here} --> {there}"
        for here, there in sorted(arrows)
        if here != there and {here, there} <= set(_PARTS)
    ]
    return _mermaid("flowchart TD", drawn)


def lifecycle() -> str:
    """Return the lifecycle, without events that leave a state as it is, and slots armed by hand."""
    events: dict[tuple[str, str], list[str]] = {}
    for (state, event), step in TABLE.items():
        if step.state is not state and (event is not Event.ON_TRIAL or state in _ARMED):
            events.setdefault((state, step.state), []).append(event)
    names = {name: name.replace("-", "_") for pair in events for name in pair}
    drawn = [f'  state "{name}" as {short}' for name, short in names.items() if name != short]
    drawn += ["  [*] --> idle"]
    drawn += [
        f"  {names[here]} --> {names[there]}: {', '.join(why)}"
        for (here, there), why in events.items()
    ]
    return _mermaid("stateDiagram-v2", drawn)


def _mermaid(kind: str, lines: list[str]) -> str:
    return "\n".join(["```mermaid", kind, *lines, "```"]) + "\n"


_ARMED = {State.WAITING_TO_REBOOT, State.REBOOTING}

DIAGRAMS: Mapping[str, Callable[[], str]] = {
    "modules": modules,
    "house": house,
    "lifecycle": lifecycle,
}


if __name__ == "__main__":
    for name, drawn in DIAGRAMS.items():
        README.write_text(sections.replaced(README, name, drawn()))
