"""A turn at a batch where nothing stands in the way."""

from eventbus.record import Delivery, Record


class FreeTurn:
    """Is never told to stop, loses no partition, waits for nothing and keeps what it buries."""

    def __init__(self) -> None:
        self.buried: list[BaseException] = []

    def stopping(self) -> bool:
        return False

    def wait(self, _seconds: float) -> None:
        pass

    def still_ours(self, _record: Record) -> bool:
        return True

    def bury(self, _record: Record, error: BaseException, _delivery: Delivery | None) -> None:
        self.buried.append(error)
