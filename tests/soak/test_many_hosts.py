from pathlib import Path

import pytest

from tests.e2e.launch import SHORT_LEASE
from tests.soak import many_hosts
from tests.soak.proxy import needs_nginx


@needs_nginx
def test_with_many_hosts_nothing_is_lost_when_an_instance_is_killed_and_the_database_crashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = many_hosts.run(tmp_path, mailboxes=600, contested=60, command=SHORT_LEASE)
    with capsys.disabled():
        print(f"\n{counts}")
    # Everything else is looked at there.
    assert counts.come_again > 0
