"""The documentation agrees with itself and with the code: links, settings, metrics, commands and
the names it uses.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands
from drf_spectacular.generators import SchemaGenerator
from prometheus_client.metrics import MetricWrapperBase

from eventbus import metrics
from feedsite import environment
from feedsite.embedded import addresses

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
APPS = ("eventbus", "posts", "feeds", "feedsite")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
OWN_SERVERS = {
    "DATABASE_URL": "postgresql://feed:secret@db.example:5432/feed",
    "REDIS_URL": "redis://redis.example:6379/0",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
    "DJANGO_SECRET_KEY": "k" * 32,
    "JWT_SIGNING_KEY": "k" * 32,
}


def prose(page: Path) -> str:
    """Return the page without its fenced code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of each table."""
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def section(page: Path, title: str) -> str:
    return page.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# Links --------------------------------------------------------------------------------------------


@cache
def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        if ":" in file:
            continue
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


def test_each_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert {page for page in pages - listed if not page.startswith("adr/")} == set()
    assert listed - pages == {
        "reference/commands.md",
        "reference/metrics.md",
        "reference/http.md",
        "reference/errors.md",
    }


def test_the_overview_leads_to_each_page() -> None:
    overview = (DOCS / "README.md").read_text()
    pages = [
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "adr"
    ]
    assert [page for page in pages if page != "README.md" and f"]({page}" not in overview] == []


# Settings -----------------------------------------------------------------------------------------


def said_defaults() -> dict[str, tuple[str, str]]:
    """Return what docs/settings.md says of each variable: the default with embedded servers and
    with one's own.
    """
    said = {}
    for names, defaults, *_rest in rows(
        (DOCS / "settings.md").read_text().split("Read outside")[0]
    ):
        variables = [name for name in in_code(names) if name.isupper()]
        each = (
            defaults.split(", ")
            if len(defaults.split(", ")) == len(variables)
            else [defaults] * len(variables)
        )
        for variable, default in zip(variables, each, strict=True):
            embedded, _, own = default.partition(" / ")
            said[variable] = (embedded, own or embedded)
    return said


def read_settings(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> dict[str, Any]:
    for variable in said_defaults():
        if variable != "FEED_DATA_DIR":
            monkeypatch.delenv(variable, raising=False)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    return environment.read()


def in_words(value: Any) -> str:
    """Return how docs/settings.md writes a default."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return str(value)
    text = ",".join(value) if isinstance(value, list) else str(value)
    return f"`{text}`" if text else "none"


def differing(
    said: dict[str, str], values: dict[str, Any], but: set[str]
) -> dict[str, tuple[str, str]]:
    told = {
        variable: text.partition(": ")[0].replace("unlimited", "none")
        for variable, text in said.items()
    }
    meant = {variable: in_words(value) for variable, value in values.items()}
    return {
        name: (told[name], meant[name])
        for name in told
        if name not in but and told[name] != meant[name]
    }


def test_the_table_of_settings_has_each_variable_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert said_defaults().keys() == read_settings(monkeypatch, {}).keys()


def test_the_table_of_settings_tells_the_defaults_with_embedded_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {variable: embedded for variable, (embedded, _own) in said_defaults().items()}
    values = read_settings(monkeypatch, {})
    servers = {"DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS"}
    secrets = {"DJANGO_SECRET_KEY", "JWT_SIGNING_KEY"}
    assert differing(said, values, but=servers | secrets | {"FEED_DATA_DIR"}) == {}
    running = addresses(values["FEED_DATA_DIR"])
    assert all(
        said[name].startswith("the embedded") and values[name] == running.get(name, "")
        for name in servers
    )
    assert all(said[name] == "generated" and len(values[name]) >= 32 for name in secrets)


def test_the_table_of_settings_tells_the_defaults_with_servers_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {variable: own for variable, (_embedded, own) in said_defaults().items()}
    monkeypatch.delenv("FEED_DATA_DIR")
    values = read_settings(monkeypatch, OWN_SERVERS)
    assert differing(said, values, but={*OWN_SERVERS, "FEED_DATA_DIR"}) == {}
    assert said["FEED_DATA_DIR"] == in_words(values["FEED_DATA_DIR"].relative_to(ROOT))
    assert all(
        said[name].startswith("required") for name in ("DJANGO_SECRET_KEY", "JWT_SIGNING_KEY")
    )


# Metrics, commands, HTTP --------------------------------------------------------------------------


def own_commands() -> list[str]:
    # `migrate` is Django's, with one thing more.
    return [name for name, app in get_commands().items() if app in APPS and name != "migrate"]


def paths_of_the_api() -> list[str]:
    schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return list(schema["paths"])


def own_metrics() -> list[MetricWrapperBase]:
    return [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def test_the_table_of_metrics_has_each_metric_with_its_type_and_labels() -> None:
    told = {
        name: (kind, in_code(labels))
        for names, kind, labels, *_rest in rows((DOCS / "metrics.md").read_text().split("\n## ")[0])
        for name in in_code(names)
    }
    for metric in own_metrics():
        (described,) = metric.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        assert told.get(name) == (described.type, list(metric._labelnames)), name


def test_the_readme_names_each_command() -> None:
    commands = section(ROOT / "README.md", "Commands")
    assert [name for name in own_commands() if not re.search(rf"\b{name}\b", commands)] == []


def test_the_readme_names_each_path_of_the_api() -> None:
    told = re.sub(r"\{\w+\}", "{}", section(ROOT / "README.md", "API"))
    paths = [re.sub(r"\{\w+\}", "{}", path) for path in paths_of_the_api()]
    assert [path for path in paths if not re.search(rf"{re.escape(path)}[`?]", told)] == []


# Names of the code --------------------------------------------------------------------------------


@cache
def names_in(file: Path) -> set[str]:
    """Return what a file of ours defines: functions, classes, methods as `Class.method`, constants,
    attributes.
    """
    tree = ast.parse(file.read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, FUNCTIONS | ast.ClassDef)}
    names |= {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        names |= {f"{owner.name}.{node.name}" for node in owner.body if isinstance(node, FUNCTIONS)}
    return names


def file_named(path: str) -> Path:
    """Return the file meant by a path from the top, or by its name in one of the apps."""
    (file,) = [file for place in ("", *APPS) if (file := ROOT / place / path).is_file()]
    return file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_name_given_with_its_file_is_in_it(page: Path) -> None:
    given = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page.read_text())
    assert [
        f"{path}: {name}" for path, name in given if name not in names_in(file_named(path))
    ] == []


def test_the_code_named_in_correctness_exists() -> None:
    missing = []
    for cells in rows((DOCS / "correctness.md").read_text()):
        for path, names in re.findall(r"`([\w/]+\.py)`((?:,? `\w+`)*)", cells[2]):
            missing += [
                f"{path} {name}"
                for name in in_code(names)
                if name not in names_in(file_named(path))
            ]
    assert missing == []


def test_the_tests_named_in_correctness_exist() -> None:
    suite = {name for file in (ROOT / "tests").rglob("test_*.py") for name in names_in(file)}
    named = {
        name
        for cells in rows((DOCS / "correctness.md").read_text())
        for name in re.findall(r"\*(\S+)\*", cells[3])
    }
    missing = {
        name for name in named if not any(re.fullmatch(_pattern(name), test) for test in suite)
    }
    assert named
    assert missing == set()


def _pattern(name: str) -> str:
    return "test_" + re.escape(name).replace("…", ".*")


# The site -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    directory = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(directory),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory


def test_the_reference_has_each_command_metric_and_path(site: Path) -> None:
    commands, all_metrics, http = (
        (site / f"reference/{page}.html").read_text() for page in ("commands", "metrics", "http")
    )
    assert [name for name in own_commands() if f">manage.py {name}<" not in commands] == []
    assert [metric for metric in own_metrics() if f"<code>{metric._name}" not in all_metrics] == []
    assert [path for path in paths_of_the_api() if f" {path}<" not in http] == []
    assert "<code>dlq_size</code>" in all_metrics


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    pages = [page.read_text() for page in site.rglob("*.html")]
    loaded = [
        tag
        for page in pages
        for tag in re.findall(r"<(?:script|img|iframe|link)[^>]*//[^>]*>", page)
    ]
    assert len(pages) > 30
    assert loaded == []
