"""The client of etcd, against real members, and against a gateway that loses and lies."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.etcd import Ca, Cluster, cluster, free_ports, until
from tests.gateway import Fault, Plan, Says, Sends, gateway
from update_agent.host.etcd import (
    Absent,
    Access,
    AuthError,
    CertificateError,
    CompactedError,
    Created,
    Delete,
    Either,
    Etcd,
    EtcdError,
    Get,
    NoQuorumError,
    Put,
    TokenError,
    Unchanged,
    UnclearError,
    UnreachableError,
    written,
)


@pytest.fixture
def etcd(etcd1: Cluster) -> Iterator[Etcd]:
    """A client of one member whose keys below /t/ are gone."""
    with etcd1.client(deadline=30.0) as made:
        made.txn((), (Delete("/t/", prefix=True),))
        yield made


def put(etcd: Etcd, key: str = "/t/a", value: bytes = b"x") -> int:
    """Write, and return the revision."""
    return etcd.txn((), (Put(key, value),)).revision


def value(etcd: Etcd, key: str = "/t/a") -> bytes | None:
    entry = etcd.get(Get(key)).found[0].entry
    return entry.value if entry else None


# What it can do ----------------------------------------------------------------------------------


def test_what_is_written_is_found_with_its_revisions(etcd: Etcd) -> None:
    first, second = put(etcd, value=b"\x00\xff"), put(etcd, value=b"")

    entry = etcd.get(Get("/t/a")).found[0].entry
    assert entry
    assert (entry.value, entry.created, entry.changed) == (b"", first, second)
    assert value(etcd, "/t/nothing") is None


def test_a_prefix_is_read_in_the_order_in_which_keys_came(etcd: Etcd) -> None:
    for key in ("/t/c", "/t/a", "/t/b", "/tx"):
        put(etcd, key)
    put(etcd, "/t/c", b"changed")

    found = etcd.get(Get("/t/", prefix=True, limit=2)).found[0]
    assert [it.key for it in found.entries] == ["/t/c", "/t/a"]
    assert found.count == 3
    etcd.txn((), (Delete("/t/", prefix=True),))
    assert etcd.get(Get("/t/", prefix=True)).found[0].count == 0
    assert value(etcd, "/tx") == b"x"


def test_a_key_is_found_without_its_value(etcd: Etcd) -> None:
    written_at = etcd.txn((), (Put("/t/a", b"long"),)).revision

    entry = etcd.get(Get("/t/a", values=False)).found[0].entry

    assert entry
    assert (entry.key, entry.value, entry.changed) == ("/t/a", b"", written_at)


@pytest.mark.case(77)
@pytest.mark.parametrize(
    ("kind", "key", "revision", "holds"),
    [
        pytest.param(Unchanged, "/t/a", "changed", True, id="unchanged"),
        pytest.param(Unchanged, "/t/a", "between", False, id="changed"),
        pytest.param(Unchanged, "/t/a", "created", False, id="changed-since-it-was-created"),
        pytest.param(Unchanged, "/t/a", "never", False, id="there-though-it-should-not-be"),
        pytest.param(Unchanged, "/t/z", "never", True, id="not-there"),
        pytest.param(Unchanged, "/t/z", "changed", False, id="gone"),
        pytest.param(Created, "/t/a", "created", True, id="the-same-as-was-created"),
        pytest.param(Created, "/t/a", "changed", False, id="created-anew"),
        pytest.param(Created, "/t/a", "never", False, id="created-meanwhile"),
        pytest.param(Created, "/t/z", "never", True, id="not-created"),
    ],
)
def test_every_compare_guards(
    kind: type[Unchanged | Created], key: str, revision: str, *, holds: bool, etcd: Etcd
) -> None:
    """The gateway ignores names it does not know: each compare has to fail when it should."""
    revisions = {"never": 0, "created": put(etcd), "between": put(etcd, "/t/b")}
    revisions["changed"] = put(etcd, value=b"y")

    answer = etcd.txn(
        (kind(key, revisions[revision]),), (Put("/t/a", b"done"), Get("/t/a")), (Get("/t/a"),)
    )

    assert answer.succeeded is holds
    assert value(etcd) == (b"done" if holds else b"y")
    assert answer.found[0].entry
    assert answer.found[0].entry.value == (b"done" if holds else b"y")


@pytest.mark.parametrize(
    ("prefix", "holds"),
    [("/t/", False), ("/t/a", False), ("/t/b", True), ("/", False), ("/u", True)],
)
def test_a_prefix_is_absent_when_nothing_begins_with_it(
    prefix: str, *, holds: bool, etcd: Etcd
) -> None:
    put(etcd)
    put(etcd, "/t/a/b")

    assert etcd.txn((Absent(prefix),), (), ()).succeeded is holds


@pytest.mark.parametrize("others", [False, True])
def test_an_either_is_decided_before_and_reads_after_what_is_done_with_it(
    etcd: Etcd, *, others: bool
) -> None:
    if others:
        put(etcd, "/t/b")
    either = Either(Absent("/t/"), (Get("/t/", prefix=True), Get("/u")), (Get("/t/a"),))

    answer = etcd.txn((), (Put("/t/a", b"mine"), either, Get("/t/a")))

    assert answer.either is not others
    assert len(answer.found) == (2 if others else 3)
    assert all(it.entry and it.entry.value == b"mine" for it in (answer.found[0], answer.found[-1]))


@pytest.mark.case(77)
def test_all_compares_must_hold(etcd: Etcd) -> None:
    right = Unchanged("/t/a", put(etcd))

    assert etcd.txn((right, right), (Get("/t/a"),)).succeeded
    assert not etcd.txn((right, Created("/t/a", 1)), (Get("/t/a"),)).succeeded


@pytest.mark.case(86)
def test_a_key_deleted_and_written_anew_is_another(etcd: Etcd) -> None:
    """Its version begins at 1 again; its revisions never do."""
    before = put(etcd)
    etcd.txn((), (Delete("/t/a"),))
    put(etcd)

    assert not etcd.txn((Unchanged("/t/a", before),), (Get("/t/a"),)).succeeded
    assert not etcd.txn((Created("/t/a", before),), (Get("/t/a"),)).succeeded


def test_a_watch_hears_of_a_key_that_is_removed(etcd: Etcd) -> None:
    since = put(etcd)
    etcd.txn((), (Delete("/t/a"),))

    with closing(etcd.watch("/t/a", since + 1, seconds=60)) as events:
        assert next(events) == []
        assert [(it.key, it.value) for it in next(events)] == [("/t/a", None)]


def test_a_lease_that_ends_takes_its_keys_along(etcd: Etcd) -> None:
    lease = etcd.grant(1)
    since = etcd.txn((), (Put("/t/a", b"x", lease=lease),)).revision
    assert etcd.keep_alive(lease)

    with closing(etcd.watch("/t/a", since + 1, seconds=60)) as events:
        assert next(events) == []
        assert [it.value for it in next(events)] == [None]
    assert not etcd.keep_alive(lease)


def test_a_watch_without_news_ends(etcd: Etcd) -> None:
    assert list(etcd.watch("/t/a", put(etcd) + 1, seconds=0.1)) == [[]]


@pytest.mark.case(84)
def test_a_watch_from_what_is_forgotten_says_so(etcd: Etcd, etcd1: Cluster) -> None:
    since = put(etcd)
    etcd1.ctl("compact", str(put(etcd)))

    with pytest.raises(CompactedError):
        list(etcd.watch("/t/a", since, seconds=60))


# What it says and hears --------------------------------------------------------------------------


def test_requests_are_written_as_the_gateway_names_things() -> None:
    """Held here word by word, and above against etcd itself."""
    assert written(Unchanged("k", 5)) == {
        "key": "aw==", "target": "MOD", "result": "EQUAL", "mod_revision": "5",
    }  # fmt: skip
    assert written(Created("k", 0)) == {
        "key": "aw==", "target": "CREATE", "result": "EQUAL", "create_revision": "0",
    }  # fmt: skip
    assert written(Get("k", prefix=True, limit=3)) == {
        "request_range": {
            "key": "aw==", "range_end": "bA==", "limit": "3",
            "sort_order": "ASCEND", "sort_target": "CREATE",
        }
    }  # fmt: skip
    assert "serializable" not in json.dumps(written(Get("k")))


HEADER = {"cluster_id": "17237436991929493444", "member_id": "9372538179322589801"}
ENTRY = {"key": "L3QvYQ==", "create_revision": "3", "mod_revision": "4", "version": "2"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            {
                "header": HEADER | {"revision": "9", "raft_term": "2"}, "succeeded": True,
                "responses": [{"response_range": {"header": {"revision": "9"},
                                                  "kvs": [ENTRY], "count": "1"}}],
            },
            id="3.4-to-3.6",
        ),
        pytest.param(
            {
                "header": {"cluster_id": 17237436991929493444, "revision": 9}, "succeeded": True,
                "responses": [{"response_range": {
                    "kvs": [{**ENTRY, "create_revision": 3, "mod_revision": 4, "value": ""}],
                    "more": False, "count": 1}}],
            },
            id="numbers-and-zeros",
        ),
    ],
)  # fmt: skip
def test_integers_are_taken_as_strings_and_numbers(answer: object) -> None:
    with gateway(always=Says(json.dumps(answer).encode())) as fake, closing(fake.client()) as etcd:
        found = etcd.get(Get("/t/a"))

    entry = found.found[0].entry
    assert (found.cluster, found.revision) == ("17237436991929493444", 9)
    assert entry
    assert (entry.value, entry.created, entry.changed, entry.lease) == (b"", 3, 4, 0)


REFUSALS = [
    (14, "etcdserver: request timed out", UnclearError),
    (14, "etcdserver: request timed out, possibly due to previous leader failure", UnclearError),
    (14, "etcdserver: leader changed", UnclearError),
    (4, "context deadline exceeded", UnclearError),
    (8, "etcdserver: mvcc: database space exceeded", UnclearError),
    (13, "something new", UnclearError),
    (14, "etcdserver: no leader", NoQuorumError),
    (8, "etcdserver: too many requests", NoQuorumError),
    (14, "etcdserver: rpc not supported for learner", NoQuorumError),
    (16, "etcdserver: invalid auth token", TokenError),
    (3, "etcdserver: revision of auth store is old", TokenError),
    (3, "etcdserver: user name is empty", TokenError),
    (3, "etcdserver: authentication failed, invalid user ID or password", AuthError),
    (9, "etcdserver: authentication is not enabled", AuthError),
    (7, "etcdserver: permission denied", AuthError),
    (11, "etcdserver: mvcc: required revision has been compacted", CompactedError),
    (3, "etcdserver: duplicate key given in txn request", EtcdError),
    (5, "etcdserver: requested lease not found", EtcdError),
    (12, "unknown service", EtcdError),
]


@pytest.mark.parametrize(("code", "said", "kind"), REFUSALS, ids=[it[1] for it in REFUSALS])
def test_refusals_of_all_versions_are_known(code: int, said: str, kind: type[EtcdError]) -> None:
    shapes = (
        {"error": said, "message": said, "code": code},
        {"error": said, "code": code},
        {"code": code, "message": said, "details": []},
    )
    for shape in shapes:
        says = Says(json.dumps(shape).encode(), status=503)
        with gateway(always=says) as fake, closing(fake.client()) as etcd:
            with pytest.raises(EtcdError, match=r"http://127\.0\.0\.1") as caught:
                etcd.txn((), (Put("/t/a", b"x"),))
            assert caught.type is kind


WATCH_ENDS = [
    (
        {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}},
        NoQuorumError,
    ),
    ({"error": {"code": 14, "message": "etcdserver: no leader", "details": []}}, NoQuorumError),
    ({"result": {"canceled": True, "cancel_reason": "etcdserver: no leader"}}, NoQuorumError),
    ({"result": {"canceled": True, "compact_revision": "7"}}, CompactedError),
    ({"result": {"canceled": True, "cancel_reason": "rpc error: permission denied"}}, AuthError),
    ({"error": {"code": 16, "message": "etcdserver: invalid auth token"}}, TokenError),
    ({"error": "something new"}, UnclearError),
]


@pytest.mark.parametrize(("line", "kind"), WATCH_ENDS)
def test_how_a_watch_ends_is_known(line: object, kind: type[EtcdError]) -> None:
    first = b'HTTP/1.1 200 OK\r\n\r\n{"result":{"created":true}}\n' + json.dumps(line).encode()
    with gateway(always=Sends(first + b"\n", b"", 60)) as fake, closing(fake.client()) as etcd:
        with pytest.raises(EtcdError) as caught:
            list(etcd.watch("/t/a", 1, seconds=60))
        assert caught.type is kind


GOOD = b'{"header":{"cluster_id":"1","revision":"1"}'
NONSENSE: list[tuple[str, Plan]] = [
    ("html", Says(b"<html>Sign in</html>")),
    ("empty", Says(b"")),
    ("json-of-somebody-else", Says(b'{"ok":true}')),
    ("a-list", Says(b"[]")),
    ("no-header", Says(b'{"succeeded":true,"responses":[{"response_range":{}}]}')),
    ("too-few-answers", Says(GOOD + b"}")),
    ("no-base64", Says(GOOD + b',"responses":[{"response_range":{"kvs":[{"key":"*"}]}}]}')),
    ("no-integer", Says(b'{"header":{"cluster_id":"1","revision":"x"}}')),
    ("infinite", Says(b'{"header":{"cluster_id":"1","revision":1e999}}')),
    ("strings-for-objects", Says(b'{"header":"x","responses":["x",7]}')),
    ("deep", Says(b"[" * 100_000)),
    ("bad-gateway", Says(b"<html>502</html>", status=502)),
    ("redirect", Says(b"{}", status=302)),
    ("request-lost", Fault.REQUEST_LOST),
    ("answer-lost", Fault.ANSWER_LOST),
    ("silent", Fault.HANGS),
    ("no-http", Sends(b"SSH-2.0\r\n", b"\n", 0.1)),
    ("huge", Sends(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 1_000_000)),
    ("slow-headers", Sends(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.1)),
    ("slow-body", Sends(b"HTTP/1.1 200 OK\r\n\r\n", b" ", 0.1)),
]


@pytest.mark.case(76)
@pytest.mark.parametrize("plan", [it[1] for it in NONSENSE], ids=[it[0] for it in NONSENSE])
def test_whatever_comes_instead_of_an_answer_a_write_is_unclear_and_a_read_fails(
    plan: Plan, etcd1: Cluster
) -> None:
    with (
        gateway(etcd1.members[0].client, always=plan) as fake,
        closing(fake.client(deadline=0.5)) as etcd,
    ):
        with pytest.raises(UnclearError):
            etcd.txn((), (Put("/t/a", b"x"), Get("/t/a")), (Get("/t/a"),))
        assert len(fake.seen) == 1
        with pytest.raises((UnreachableError, UnclearError)):
            etcd.get(Get("/t/a"))


# Outcomes ----------------------------------------------------------------------------------------


@pytest.mark.case(76)
@pytest.mark.parametrize(
    ("fault", "there"),
    [
        pytest.param(Fault.REQUEST_LOST, None, id="not-applied"),
        pytest.param(Fault.ANSWER_LOST, b"x", id="applied"),
    ],
)
def test_a_write_without_an_answer_is_unclear_and_not_sent_elsewhere(
    fault: Fault, there: bytes | None, etcd: Etcd, etcd1: Cluster
) -> None:
    with gateway(etcd1.members[0].client) as fake:
        fake.faults[0] = fault
        both = Access(endpoints=(fake.url, fake.url))
        with closing(Etcd(both)) as other, pytest.raises(UnclearError):
            put(other)
        assert len(fake.seen) == 1
    assert value(etcd) == there


@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST])
def test_what_may_be_done_twice_is_asked_of_another(
    fault: Fault, etcd: Etcd, etcd1: Cluster
) -> None:
    put(etcd)
    with gateway(etcd1.members[0].client) as fake:
        fake.faults |= dict.fromkeys((0, 2, 4), fault)
        both = Access(endpoints=(fake.url, fake.url))
        with closing(Etcd(both)) as other:
            assert value(other) == b"x"
            assert other.txn((), (Put("/t/b", b"y"),), again=True).succeeded
            assert other.grant(60)
            assert len(fake.seen) == 6
    assert value(etcd, "/t/b") == b"y"


def test_an_endpoint_that_cannot_be_reached_is_passed_over(etcd: Etcd, etcd1: Cluster) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    both = Access(endpoints=(nobody, etcd1.members[0].client))
    with closing(Etcd(both, chance=lambda: 0.0)) as other:
        put(other)

        assert value(etcd) == b"x"
        assert list(other.watch("/t/z", put(other), seconds=0.1))


def test_without_any_endpoint_the_error_names_them() -> None:
    nobody = [f"http://127.0.0.1:{it}" for it in free_ports(2)]
    etcd = Etcd(Access(endpoints=tuple(nobody)))
    with closing(etcd), pytest.raises(UnreachableError) as caught:
        put(etcd)
    assert all(it in str(caught.value) for it in nobody)
    assert caught.value.hint
    assert "/health" in caught.value.hint


@pytest.mark.parametrize("url", ["etcd:2379", "http://", "ftp://x", "http://no such host/"])
def test_what_is_no_url_is_unreachable(url: str) -> None:
    with closing(Etcd(Access(endpoints=(url,)))) as etcd, pytest.raises(UnreachableError):
        put(etcd)


# Members that fail -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Members that tests may kill, and start again."""
    with cluster(3) as made:
        yield made


def test_a_client_goes_on_when_its_member_or_the_leader_dies(three: Cluster) -> None:
    with three.client(deadline=30.0) as etcd:
        put(etcd)
        for at in (0, three.leader()):
            three.members[at].kill()

            until(lambda: try_put(etcd))
            assert value(etcd) == b"x"
            three.start()


def try_put(etcd: Etcd) -> bool:
    try:
        put(etcd)
    except EtcdError:
        return False
    return True


def test_a_paused_member_is_passed_over(three: Cluster) -> None:
    with three.client(deadline=1.0) as etcd:
        put(etcd)
        three.members[0].pause()
        try:
            until(lambda: try_put(etcd))
        finally:
            three.members[0].go_on()
    three.ready()


def test_without_a_quorum_reads_and_writes_fail_clearly_and_recover_by_themselves(
    three: Cluster,
) -> None:
    with three.client(deadline=2.0) as etcd:
        put(etcd)
        for at in (1, 2):
            three.members[at].kill()
        with pytest.raises(NoQuorumError) as caught:
            etcd.get(Get("/t/a"))
        assert caught.value.hint
        assert "a majority must run" in caught.value.hint
        with pytest.raises((NoQuorumError, UnclearError)):
            put(etcd)

        three.start()
        until(lambda: try_put(etcd))


@pytest.mark.case(82)
def test_a_member_that_lost_the_others_does_not_say_what_it_remembers(etcd3: Cluster) -> None:
    alone = (etcd3.leader() + 1) % 3
    with etcd3.client(alone, deadline=2.0) as inside, etcd3.client(deadline=30.0) as outside:
        put(inside, value=b"old")
        etcd3.cut(alone)
        try:
            until(lambda: try_put(outside))
            with pytest.raises(NoQuorumError):
                inside.get(Get("/t/a"))
        finally:
            etcd3.mend(alone)
        until(lambda: etcd3.answers(alone))
        assert value(inside) == b"x"


@pytest.mark.case(83)
def test_a_watch_at_a_member_that_lost_the_others_ends(etcd3: Cluster) -> None:
    alone = etcd3.leader()
    with etcd3.client(alone, deadline=30.0) as inside:
        events = inside.watch("/t/a", put(inside) + 1, seconds=3600)
        assert next(events) == []
        etcd3.cut(alone)
        try:
            with pytest.raises((NoQuorumError, UnreachableError)):
                list(events)
        finally:
            etcd3.mend(alone)
    until(lambda: etcd3.answers(alone))


# Certificates ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls() -> Iterator[Cluster]:
    with cluster(1, tls=True) as made:
        yield made


def files(ca: Ca, name: str, *, days: float = 1) -> dict[str, str]:
    cert, key = ca.issue(name, days=days)
    return {"cert": str(cert), "key": str(key)}


def refused(tls: Cluster, **fields: object) -> EtcdError:
    access = replace(tls.access(), **fields)  # type: ignore[arg-type]
    with closing(Etcd(access)) as etcd, pytest.raises(EtcdError) as caught:
        put(etcd)
    return caught.value


def test_certificates_that_are_wrong_are_refused_and_said_to_be(tls: Cluster) -> None:
    assert tls.ca
    other = Ca(tls.folder / "other")

    error = refused(tls, ca=str(other.path))
    assert type(error) is CertificateError
    assert "certificate verify failed" in str(error)
    assert error.hint
    assert "dates" in error.hint
    assert type(refused(tls, **files(other, "stranger"))) is CertificateError
    assert type(refused(tls, **files(tls.ca, "late", days=-1))) is CertificateError
    assert type(refused(tls, cert=None, key=None)) is CertificateError


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_files_that_are_missing_or_nonsense_are_named(field: str, tls: Cluster) -> None:
    nonsense = tls.folder / "nonsense.pem"
    nonsense.write_text("nonsense")

    assert type(refused(tls, **{field: str(tls.folder / "missing.pem")})) is CertificateError
    assert type(refused(tls, **{field: str(nonsense)})) is CertificateError


def test_a_server_whose_certificate_is_expired_or_for_another_name_is_refused(
    tmp_path: Path,
) -> None:
    with cluster(1, tls=True, folder=tmp_path) as one:
        assert one.ca
        for days, addresses in ((-1, ["127.0.0.1"]), (1, ["127.0.0.2"])):
            one.members[0].kill()
            one.ca.issue("member", addresses, days=days)
            one.members[0].start()
            with one.client() as etcd:
                until(lambda etcd=etcd: type(failure(etcd)) is CertificateError)
        one.members[0].kill()
        one.ca.issue("member", ["127.0.0.1"])
        one.start()
        with one.client() as etcd:
            put(etcd)


def failure(etcd: Etcd) -> EtcdError | None:
    try:
        put(etcd)
    except EtcdError as error:
        return error
    return None


def test_a_renewed_certificate_is_used_without_a_restart(tls: Cluster) -> None:
    assert tls.ca
    mine = files(tls.ca, "renewed", days=-1)
    access = replace(tls.access(), **mine)  # type: ignore[arg-type]
    with closing(Etcd(access)) as etcd:
        assert type(failure(etcd)) is CertificateError
        tls.ca.issue("renewed")

        assert failure(etcd) is None


def test_http_to_a_tls_port_and_tls_to_an_http_port_are_no_success(
    tls: Cluster, etcd1: Cluster
) -> None:
    plain = tls.members[0].client.replace("https", "http")
    secret = etcd1.members[0].client.replace("http", "https")

    assert type(refused(tls, endpoints=(plain,))) is UnclearError
    error = refused(tls, endpoints=(secret,))
    assert error.hint
    assert "TLS" in error.hint or type(error) is CertificateError


# Users -------------------------------------------------------------------------------------------


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Cluster]:
    """A member with users: root, and agent, who may write below /update-agent/."""
    with cluster(1, folder=tmp_path) as made:
        for words in (
            "user add root:secret", "user grant-role root root", "user add agent:secret",
            "role add agent", "user grant-role agent agent",
            "role grant-permission agent --prefix=true readwrite /update-agent/", "auth enable",
        ):  # fmt: skip
            made.ctl(*words.split())
        (tmp_path / "password").write_text("secret\n")
        yield made


def as_user(users: Cluster, name: str = "agent", password: str = "password") -> Etcd:  # noqa: S107
    file = str(users.folder / password)
    return Etcd(replace(users.access(deadline=30.0), user=name, password_file=file))


def test_users_get_what_they_may_and_no_more(users: Cluster, tmp_path: Path) -> None:
    with closing(as_user(users)) as etcd:
        put(etcd, "/update-agent/x")
        assert value(etcd, "/update-agent/x") == b"x"
        with pytest.raises(AuthError, match="permission denied") as caught:
            put(etcd, "/elsewhere")
        assert caught.value.hint
        assert "/update-agent/" in caught.value.hint
    (tmp_path / "wrong").write_text("wrong")
    for name, password in (("agent", "wrong"), ("nobody", "password"), ("agent", "missing")):
        with closing(as_user(users, name, password)) as etcd, pytest.raises(AuthError) as caught:
            put(etcd, "/update-agent/x")
        assert caught.value.hint
        assert "password_file" in caught.value.hint
    with users.client() as nobody, pytest.raises(AuthError):
        put(nobody, "/update-agent/x")


@pytest.mark.case(89)
def test_a_token_that_etcd_forgot_is_renewed(users: Cluster) -> None:
    with closing(as_user(users)) as etcd, closing(as_user(users, "root")) as root:
        put(etcd, "/update-agent/x")
        for ask in (put, value):
            token = etcd._token
            changed = {"name": "agent", "password": "secret"}  # which ends all tokens of agent
            root._call("/v3/auth/user/changepw", changed, again=True)

            assert ask(etcd, "/update-agent/x")
            assert etcd._token != token
        assert list(etcd.watch("/update-agent/x", 1, seconds=0.1))


def test_a_user_where_etcd_has_none_is_told(etcd1: Cluster, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    access = replace(etcd1.access(), user="agent", password_file=str(tmp_path / "password"))
    with closing(Etcd(access)) as etcd, pytest.raises(AuthError, match="not enabled"):
        put(etcd)
