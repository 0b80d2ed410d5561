from django.apps import AppConfig


class FeedsiteConfig(AppConfig):
    name = "feedsite"

    def ready(self) -> None:
        from feedsite import checks  # noqa: F401 - registers them once apps are loaded
