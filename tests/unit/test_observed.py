"""What stands in front of a store hands everything on, and counts it."""

import pytest

from tests.contract.test_users import quiet
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.observed import ObservedUsers
from usersvc.adapters.prometheus import PrometheusMetrics
from usersvc.application.ports import StorageUnavailable, Users


async def test_many_added_at_once_and_a_removal_are_handed_on_and_counted() -> None:
    users, metrics = InMemoryUsers(), PrometheusMetrics()
    observed: Users = ObservedUsers(users, metrics)
    alice = quiet("alice@example.com")

    assert await observed.add_all([alice, quiet("ALICE@example.com")]) == [True, False]
    assert await users.archive.count() == 1
    assert await observed.remove(alice.id) is True
    assert await observed.remove(alice.id) is False
    figures = (await metrics.exposition(users.outbox)).decode()
    assert 'usersvc_storage_call_duration_seconds_count{operation="add_all"} 1.0' in figures
    assert 'usersvc_storage_call_duration_seconds_count{operation="remove"} 2.0' in figures


async def test_what_the_store_cannot_answer_is_counted() -> None:
    class Broken(InMemoryUsers):
        async def remove(self, user_id: object) -> bool:
            raise StorageUnavailable

    users, metrics = Broken(), PrometheusMetrics()
    with pytest.raises(StorageUnavailable):
        await ObservedUsers(users, metrics).remove(quiet("alice@example.com").id)
    figures = (await metrics.exposition(users.outbox)).decode()
    assert 'usersvc_storage_failures_total{operation="remove"} 1.0' in figures
