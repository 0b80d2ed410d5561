"""Advisory locks: one key, one transaction at a time; a bulk load alone."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connection, transaction
from psycopg.errors import LockNotAvailable

from eventbus.database import locks

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus"])


def is_free(*keys: int) -> bool:
    """Tell whether another connection gets the locks of `keys` now."""
    return _is_granted(lambda: locks.acquire_keys(keys))


def is_free_of_workers() -> bool:
    """Tell whether a bulk load in another connection may start now."""
    return _is_granted(locks.acquire_bulk_load)


def _is_granted(acquire: Callable[[], None]) -> bool:
    def try_it() -> bool:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '50ms'")
                acquire()
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            return False
        else:
            return True
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as other:
        return other.submit(try_it).result()


def test_a_key_is_held_to_the_end_of_the_transaction() -> None:
    with transaction.atomic():
        locks.acquire_keys([1, 2])
        assert not is_free(2)
        assert not is_free(3, 1)
    assert is_free(1, 2)


def test_other_keys_are_not_held() -> None:
    with transaction.atomic():
        locks.acquire_keys([1, 2])
        assert is_free(3)


def test_a_lock_may_be_taken_again_and_without_keys() -> None:
    with transaction.atomic():
        locks.acquire_keys([1, 1])
        locks.acquire_keys([1])
        locks.acquire_keys([])
        assert not is_free(1)


def test_a_rolled_back_transaction_holds_nothing() -> None:
    with transaction.atomic():
        locks.acquire_keys([1])
        transaction.set_rollback(True)
    assert is_free(1)


def test_workers_that_name_the_same_keys_in_any_order_never_deadlock() -> None:
    def work(seed: int) -> int:
        keys = list(range(1, 21))
        shuffle = random.Random(seed).shuffle
        try:
            for _ in range(40):
                shuffle(keys)
                with transaction.atomic():
                    locks.acquire_keys(keys)
        finally:
            connection.close()
        return seed

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(work, range(4))) == [0, 1, 2, 3]


def test_a_bulk_load_keeps_every_key_and_other_bulk_loads_out() -> None:
    with transaction.atomic():
        locks.acquire_bulk_load()
        assert not is_free(1)
        assert not is_free_of_workers()
    assert is_free(1)


def test_a_bulk_load_waits_for_the_workers() -> None:
    with transaction.atomic():
        locks.acquire_keys([1])
        assert not is_free_of_workers()
    assert is_free_of_workers()


@pytest.mark.parametrize("key", [locks.BULK_LOAD, 2**63 - 1])
def test_no_user_id_is_mistaken_for_the_bulk_load(key: int) -> None:
    with transaction.atomic():
        locks.acquire_keys([key])
        assert is_free(2)
