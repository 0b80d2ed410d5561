from django.apps import AppConfig


class EventbusConfig(AppConfig):
    name = "eventbus"

    def ready(self) -> None:
        from eventbus import cells

        cells.use_settings()
