"""`manage.py import_posts FILE`"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import node_lease, producer
from eventbus.csvfiles import UNUSABLE, open_csv
from eventbus.exceptions import EventBusError
from posts import imports


class Command(BaseCommand):
    help = "Publish posts from CSV (gz too) with the columns author,text and optionally t_unix, as events."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)

    def handle(self, *_args: Any, file: Path, **_options: Any) -> None:
        try:
            with open_csv(file) as lines:
                total = sum(1 for _draft in imports.read_drafts(lines))
            with open_csv(file) as lines:
                drafts = tqdm(imports.read_drafts(lines), total=total, unit=" posts", unit_scale=True, disable=None)
                done = imports.publish_all(drafts)
        except UNUSABLE as error:
            raise CommandError(f"{file}: {error}. Nothing was published.") from error
        except OSError as error:
            raise CommandError(f"Cannot read {file}: {error.strerror or error}.") from error
        except EventBusError as error:
            raise CommandError(f"{error} Publish the file again: posts that arrived get new ids.") from error
        finally:
            producer.close()
            node_lease.release()
        self.stdout.write(
            f"{done.acknowledged} posts published in {done.seconds:.1f} s ({done.acknowledged / done.seconds:,.0f}/s)"
        )
        if done.failed:
            raise CommandError(f"{done.failed} posts were not acknowledged by Kafka: {done.first_error}")
