"""The table of what goes wrong, in tests/README.md: which case is held by which tests.

``python -m tests.cases`` writes it anew from the ``case`` marks in the tests; a test fails while it
is behind them.
"""

import ast
from pathlib import Path

from tests import sections

TESTS = Path(__file__).parent
README = TESTS / "README.md"

CASES = {
    1: "timestamp older version",
    2: "same version, other content",
    3: "snapshot rollback with new timestamp",
    4: "targets rollback",
    5: "meta entry removed",
    6: "expired timestamp / root",
    7: "root 1-of-2 signatures",
    8: "root version skip N+2",
    9: "root signed by new keys only",
    10: "same key under two keyids to reach threshold",
    11: "fast-forward version 2^63 then key rotation recovery",
    12: "cached metadata truncated to 0 bytes by power loss, then rollback",
    13: "clock at 1970 / 2099 / stepping back during an update",
    14: "mix: manifest of A with chunks of B",
    15: "manifest for other arch/board/channel correctly signed",
    16: "trusted-root/key file missing, empty or unreadable -> must fail closed",
    17: "target absent vs 404 vs 403 vs 500",
    18: "rejected metadata must not be cached (tough CVE-2025-2888)",
    19: "deep / huge / duplicate-key / NaN / bool-as-int JSON",
    20: 'version strings: "1.10" vs "1.9", 10 kB long, "..", unicode digits, empty',
    21: "truncated body with right Content-Length",
    22: "longer body",
    23: "1 byte/s forever (slow drip under the gap timeout)",
    24: "hang after headers",
    25: "reset mid-chunk",
    26: "server ignores Range and answers 200 from 0 on resume",
    27: "206 with wrong Content-Range",
    28: "ETag changed between resumes",
    29: "gzip bomb/unrequested encoding",
    30: "redirect loop, https->http, to file:// or 169.254.169.254",
    31: "captive portal 200 HTML",
    32: "wrong cert / expired cert / hostname",
    33: "proxy env injection",
    34: "chunk of right length, wrong hash",
    35: "mirrors: first bad, second good",
    36: "image 1 byte larger than partition",
    37: "size around 2^31, 2^32",
    38: "EIO at chunk k, ENOSPC in state dir",
    39: "fsync returns EIO once then OK (must not be retried as success)",
    40: "short write / EINTR",
    41: "bit flip on disk after write (read-back must find)",
    42: "inactive slot is mounted, held by dm, or *is* the running root after manual boot",
    43: "4Kn disk, loop with 4096",
    44: "disk > 2 TiB",
    45: "dm/nvme/mmc partition naming",
    46: "two disks with identical GUIDs",
    47: "power cut at every single write (enumerated crash points, incl. torn "
    "sector & reordered between flushes)",
    48: "kill -9 / SIGABRT at every step then resume",
    49: "two daemon instances",
    50: "journal says k chunks but disk lost the last ones",
    51: "image with correct hash but bad verity root hash / salt / size in cmdline",
    52: "state file from a newer/older daemon version after rollback",
    53: "primary header CRC bad",
    54: "primary entries bad",
    55: "backup bad",
    56: "both valid but different",
    57: "both bad -> refuse to write",
    58: "PMBR missing",
    59: "hybrid MBR",
    60: "disk grown: backup not at end",
    61: "header with size 0, 4096; entry size 256; count 2^32-1; entries_lba 0/1; overlapping",
    62: "IGNOREME/CHROMEOS signature",
    63: "tie of priorities; P15 already used",
    64: "successful with P0; tries 15",
    65: "trial slot hangs (no watchdog)",
    66: "try counter cannot be written (RO) -> no unbounded loop",
    67: "boots, marks good, dies 10 min later",
    68: "update->fail->fallback->same update again for ever",
    69: "power cut during the trial boot (tries wasted)",
    70: "mark-good with one GPT copy bad",
    71: "verity corruption at run time",
    72: "ordering cycle removes mark-good",
    73: "ESP full / ESP kernel mismatch",
    74: "downgrade of selector vs. OS",
    75: "both slots exhausted",
    76: "acquire reply lost (applied / not applied)",
    77: "compare typo -> guard vacuous",
    78: "holder never returns",
    79: "node deleted",
    80: "cloned machine-id",
    81: "leader loss at each step",
    82: "isolated member + serializable read",
    83: "watch hangs w/o hasleader",
    84: "compacted revision",
    85: "etcd restored from backup (revision goes back, new cluster_id)",
    86: "key deleted & recreated (ABA on version)",
    87: "malformed JSON in the key, slots 0/-1/lowered",
    88: "500 hosts at once (CAS storm)",
    89: "token expired between acquire and release",
    90: "process paused (SIGSTOP 10 min) between acquire and reboot",
    91: "reboot inhibited/refused by logind while holding",
    92: "rebooting host is the etcd member whose loss breaks quorum",
    93: "clock skew of +-1 day between hosts",
    94: "publish crash between snapshot and timestamp",
    95: "channel promoted twice/concurrently",
    96: "release withdrawn mid-rollout",
    97: "percentage rollout: host flips bucket when salt changes",
    98: "path traversal in chunk/channel/API names",
    99: "unauthenticated admin call, oversized body, slow-loris",
    100: "rollout to 0 hosts/101 %",
    101: "timestamp signer down until expiry (fleet must keep running and complain)",
}


def marked() -> dict[int, list[str]]:
    """Return the test files that hold each case, by the marks in them."""
    found: dict[int, set[str]] = {}
    modules = [*TESTS.rglob("test_*.py"), *TESTS.parent.glob("vm-tests/test_*.py")]
    for module in sorted(modules):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
                for number in node.args:
                    base = TESTS if module.is_relative_to(TESTS) else TESTS.parent
                    name = str(module.relative_to(base))
                    found.setdefault(int(ast.literal_eval(number)), set()).add(name)
    return {number: sorted(names) for number, names in found.items()}


def table() -> str:
    """Return the table in Markdown."""
    where = marked()
    rows = [f"| {number} | {title} | {_held(number, where)} |" for number, title in CASES.items()]
    return "\n".join(["| case | what goes wrong | held by |", "|---|---|---|", *rows]) + "\n"


def _held(number: int, where: dict[int, list[str]]) -> str:
    if number in where:
        return ", ".join(f"`{name}`" for name in where[number])
    return "**nothing yet**"


def written() -> str:
    """Return tests/README.md as it should be."""
    return sections.replaced(README, "cases", table())


if __name__ == "__main__":
    README.write_text(written())
