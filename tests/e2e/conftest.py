"""What every test with the whole system needs."""

from tests.crash.conftest import fresh_broker

__all__ = ["fresh_broker"]
