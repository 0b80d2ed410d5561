"""The pages of the site that are made from the code, a hook of `mkdocs.yml`: commands, metrics,
HTTP.

Nothing of them is kept, so they cannot be out of date. The decisions of `docs/adr` join the
navigation here too.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import django
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

DOCS = Path(__file__).resolve().parent
APPS = ("feedsite", "eventbus", "posts", "feeds")
FOREIGN_METRICS = ("django_", "process_", "python_")
OF_DJANGO = {
    option
    for action in BaseCommand().create_parser("", "")._actions
    for option in action.option_strings
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the decisions where the navigation leaves room for them."""
    for section in config.nav or []:
        for page in section.get("Explanation", []) if isinstance(section, dict) else []:
            if isinstance(page, dict) and "Decisions" in page:
                page["Decisions"] = [
                    f"adr/{file.name}" for file in sorted((DOCS / "adr").glob("*.md"))
                ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    _set_up()
    pages = {"commands": commands(), "metrics": metrics(), "http": http(), "errors": errors()}
    for name, lines in pages.items():
        files.append(
            File.generated(config, f"reference/{name}.md", content="\n".join(lines) + "\n")
        )
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Take the backslash from `\\|` in the code of a table: GitHub needs it there, Python-Markdown would show it."""
    return re.sub(
        r"^\|.*", lambda row: re.sub(r"`[^`]*`", _unescaped, row[0]), markdown, flags=re.MULTILINE
    )


def commands() -> Iterator[str]:
    """Yield a page with every management command of the project and its arguments."""
    yield "# Commands\n"
    yield "`manage.py` stands for `.venv/bin/python manage.py`. Django's own options are left out."
    for name, app in sorted(get_commands().items()):
        if app in APPS:
            parser = load_command_class(app, name).create_parser("manage.py", name)
            yield from _command(f"manage.py {name}", parser)


def metrics() -> Iterator[str]:
    """Yield a page with every metric of `eventbus/metrics.py`."""
    yield "# All metrics\n"
    yield "As `eventbus/metrics.py` defines them. [Metrics](../metrics.md) tells who has which and what to do.\n"
    yield from _table_head("metric", "type", "labels", "meaning")
    own = {
        each
        for each in REGISTRY._names_to_collectors.values()
        if isinstance(each, MetricWrapperBase)
    }
    for collector in sorted(own, key=lambda each: each._name):
        for metric in collector.describe():
            if not metric.name.startswith(FOREIGN_METRICS):
                name = metric.name + ("_total" if metric.type == "counter" else "")
                yield _row(
                    f"`{name}`", metric.type, _code(collector._labelnames), metric.documentation
                )


def http() -> Iterator[str]:
    """Yield a page with the README's section on the API, then every operation of the OpenAPI
    document.
    """
    from drf_spectacular.generators import SchemaGenerator  # not to be had before Django is set up

    schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    yield "# HTTP API\n"
    about = (DOCS.parent / "README.md").read_text().split("\n## API\n")[1].split("\n## ")[0]
    yield about.strip().replace("](docs/", "](../")
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield from _operation(f"{method.upper()} {path}", operation)
    yield "\n## Objects"
    for name, component in schema["components"]["schemas"].items():
        yield from _object(name, component)


def errors() -> Iterator[str]:
    """Yield a page with every code that an error of the API may have."""
    from posts.codes import CODES  # not to be had before Django is set up

    at: dict[str, list[str]] = {code: [] for code in CODES}
    for operation, codes in _codes_by_operation().items():
        for code in codes:
            at[code].append(operation)
    everywhere = len(_codes_by_operation())
    yield "# Error codes\n"
    yield 'Every error is `{"code": "…", "detail": "…"}`. The code is for programs: it keeps its'
    yield "status and its meaning. The detail is for people and may change. `posts/codes.py` has them"
    yield "all, and the OpenAPI document those of each operation.\n"
    yield from _table_head("code", "status", "meaning", "operations")
    for code, (status, meaning) in sorted(
        CODES.items(), key=lambda each: (each[1].status, each[0])
    ):
        where = "all" if len(at[code]) == everywhere else _code(at[code])
        yield _row(f"`{code}`", str(status), _sentence(meaning), where)


def _codes_by_operation() -> dict[str, list[str]]:
    from drf_spectacular.generators import SchemaGenerator

    schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    schemas = schema["components"]["schemas"]
    found = {}
    for operations in schema["paths"].values():
        for operation in operations.values():
            name = _type(_json_of(operation["responses"]["500"])).partition("]")[0].lstrip("[")
            found[operation["operationId"]] = _codes_in(schemas[name])
    return found


def _codes_in(error: dict[str, Any]) -> list[str]:
    codes: list[str] = error["allOf"][1]["properties"]["code"]["enum"]
    return codes


@cache
def _set_up() -> None:
    """Make Django's part of the code usable.

    No server is asked, and the secrets made for it are thrown away.
    """
    os.environ.pop(
        "DATABASE_URL", None
    )  # with a database of one's own, secrets would have to be given
    with tempfile.TemporaryDirectory() as data_dir:
        os.environ |= {"FEED_DATA_DIR": data_dir, "DJANGO_SETTINGS_MODULE": "feedsite.settings"}
        django.setup()
    from eventbus.metrics import export_dlq_size

    export_dlq_size(lambda: 0)


def _unescaped(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


def _command(name: str, parser: argparse.ArgumentParser, about: str = "") -> Iterator[str]:
    yield f"\n## {name}\n\n{_sentence(parser.description or about)}\n"
    subcommands = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    own = [
        a
        for a in parser._actions
        if a not in subcommands and not OF_DJANGO.intersection(a.option_strings)
    ]
    if own:
        yield from _table_head("argument", "meaning")
        yield from (_row(f"`{_argument(action)}`", _meaning(action)) for action in own)
    for action in subcommands:
        help_of = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for subcommand, its_parser in action.choices.items():
            yield from _command(f"{name} {subcommand}", its_parser, help_of.get(subcommand, ""))


def _argument(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings)
    value = "" if action.nargs == 0 else str(action.metavar or action.dest).upper()
    return f"{name} {value}{' …' if action.nargs == '+' else ''}".strip()


def _meaning(action: argparse.Action) -> str:
    choices = f"One of {_code(map(str, action.choices))}. " if action.choices else ""
    return (
        choices
        + _sentence(action.help or "")
        + (" Required." if action.required and action.option_strings else "")
    )


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {title}\n\n{operation.get('description', '')}\n"
    if body := operation.get("requestBody"):
        yield f"Body: {_type(_json_of(body))}.\n"
    if parameters := operation.get("parameters"):
        yield from _table_head("parameter", "in", "type", "meaning")
        for its in parameters:
            kind = _type(its["schema"]) + ("" if its.get("required") else ", optional")
            yield _row(f"`{its['name']}`", its["in"], kind, its.get("description", ""))
        yield ""
    for status, answer in operation["responses"].items():
        yield f"Answer {status}: {_type(_json_of(answer))}.\n"


def _object(name: str, component: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {name}\n"
    if "enum" in component:
        yield f"One of {_code(component['enum'])}."
        return
    if "oneOf" in component:
        yield f"{_type(component)}."
        return
    if "allOf" in component:
        yield f"An [Error](#error) whose code is one of {_code(_codes_in(component))}."
        return
    yield from _table_head("field", "type", "meaning")
    for field, its in component["properties"].items():
        kind = _type(its) + ("" if field in component.get("required", []) else ", optional")
        yield _row(f"`{field}`", kind, its.get("description", ""))


def _json_of(message: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = (
        message.get("content", {}).get("application/json", {}).get("schema", {})
    )
    return schema


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "allOf" in schema or "oneOf" in schema:
        return " or ".join(_type(each) for each in schema.get("allOf") or schema["oneOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return _code(schema["enum"])
    kind = schema.get("type", "nothing")
    return kind if isinstance(kind, str) else " or ".join(kind)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) or not text else ".")


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table_head(*titles: str) -> Iterator[str]:
    yield _row(*titles)
    yield _row(*("---" for _ in titles))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
