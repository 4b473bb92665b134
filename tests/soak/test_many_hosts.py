from pathlib import Path

from tests.e2e.launch import SHORT_LEASE
from tests.soak import many_hosts
from tests.soak.proxy import needs_nginx


@needs_nginx
def test_no_user_is_lost_when_an_instance_is_killed_and_the_database_crashes(tmp_path: Path) -> None:
    metrics = many_hosts.run(tmp_path, mailboxes=600, contested=60, command=SHORT_LEASE)
    assert metrics["asked to retry"] > 0
