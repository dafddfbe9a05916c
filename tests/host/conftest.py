"""The releases that tests of slots share, and clusters of etcd."""

from tests.etcd import etcd1 as etcd1  # noqa: PLC0414  fixtures, found by their names
from tests.etcd import etcd3 as etcd3  # noqa: PLC0414
from tests.images import releases as releases  # noqa: PLC0414  a fixture, found by its name
from tests.locks import etcd as etcd  # noqa: PLC0414
