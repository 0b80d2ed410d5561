from django.apps import AppConfig


class FeedsiteConfig(AppConfig):
    name = "feedsite"

    def ready(self) -> None:
        from feedsite import checks, openapi  # noqa: F401 - registered once apps are loaded
