"""Whatever the API's description allows, and what it forbids, by the thousand: no defect, no lie.

Each answer has a status, a kind and a shape that the description names; what does not fit it is
refused; without a token nothing is answered. In a query everything is text, so nothing in one is of
a wrong type, and reports are refused one by one, in an answer that is a success: what is refused
there is in test_api.py. More, for longer: see tests/README.md.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks, openapi
from schemathesis.specs.openapi import checks as of_openapi

from tests.publisher import Team
from tests.server.process import Server, report, serving
from update_agent.core.report import Waits
from update_agent.server import api

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "10"))
"""Of each kind, for each operation."""
CHECKS = [
    checks.not_a_server_error,
    of_openapi.status_code_conformance,
    of_openapi.content_type_conformance,
    of_openapi.response_schema_conformance,
    of_openapi.ignored_auth,
]
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in api.openapi()["paths"].items()
    for method in methods
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, stock: Any) -> Iterator[Server]:  # noqa: ANN401
    team: Team = stock.team.copy(tmp_path_factory.mktemp("schema") / "team")
    with serving(team.folder, "--report-rate", "0") as started:
        wait = Waits(reason="wave", sentence="this host stands at 12 %")
        started.post(report(1), report(2, state="waiting", wait=wait, place=120_000))
        yield started


@pytest.mark.case(99)
@pytest.mark.parametrize("wanted", OPERATIONS)
@pytest.mark.parametrize("mode", [*schemathesis.GenerationMode], ids=lambda it: str(it.value))
def test_every_operation_keeps_its_word(
    server: Server, wanted: str, mode: schemathesis.GenerationMode
) -> None:
    schema = openapi.from_dict(api.openapi())
    schema.config.update(base_url=server.url)
    method, path = wanted.split()
    operation = schema[path][method]
    token = server.tokens["hosts" if path == "/v1/reports" else "operators"]

    whole = method != "GET" and path != "/v1/reports"
    refusals = [of_openapi.negative_data_rejection] if whole else []

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(
            checks=[*CHECKS, *refusals], headers={"Authorization": f"Bearer {token}"}, timeout=60
        )

    ask()
