"""The path converter for ids: 1 … 2^63-1 in decimal; anything else is a 404."""

from eventbus.ids.snowflake import is_id


class IdConverter:
    regex = "[1-9][0-9]{0,18}"

    def to_python(self, value: str) -> int:
        number = int(value)
        if not is_id(number):
            raise ValueError
        return number

    def to_url(self, value: int) -> str:
        return str(value)
