"""The tables of docs/configuration.md, made from the declarations. Run it to write them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modelyard.cli.tables import shown
from modelyard.cli.values import allowed
from modelyard.engines import ENGINES, engine_class
from modelyard.engines.base import ModelParams
from modelyard.models.catalog import CatalogEntry, Source
from modelyard.settings import params
from modelyard.settings.params import Param
from modelyard.settings.passthrough import PassThrough
from modelyard.settings.settings import Settings

KINDS = {str: "string", int: "integer", float: "number", bool: "true, false", list: "list of strings", dict: "table"}
NOTHING: Sequence[object] = (None, "", [], {})
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def tables() -> Mapping[str, str]:
    """Return every table by the name that its place in the page has."""
    of_all = params.params_of(ModelParams)
    made = {
        "settings": _table(params.params_of(Settings).values()),
        "every model": _table(of_all.values()),
        "entry": _table(params.params_of(CatalogEntry).values()),
        "source": _table(params.params_of(Source).values()),
        "passthrough": _table(params.params_of(PassThrough).values()),
    }
    for name in ENGINES:
        own = params.params_of(engine_class(name).Params)
        made[f"engine {name}"] = _table(p for p in own.values() if p.name not in of_all)
    return made


def _table(declared: Iterable[Param]) -> str:
    lines = ["| name | type | default | what it is |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(_row(param) for param in declared)])


def _row(param: Param) -> str:
    kind = KINDS[param.type]
    takes = allowed(param)
    if param.choices:
        kind = ", ".join(f"`{choice}`" for choice in param.choices)
    elif "size" in param.tags:
        kind = "size"
    elif takes:
        kind += f", {takes}"
    default = "" if param.default in NOTHING else f"`{shown(param.default)}`"
    default = "required" if param.required else default
    if param.type is bool and not param.required:
        default = f"`{str(param.default).lower()}`"
    tags = f" ({', '.join(sorted(param.tags - {'size'}))})" if param.tags - {"size"} else ""
    return f"| `{param.name}` | {kind} | {default} | {param.help}{tags} |".replace("|  |", "| |")


def placed(page: str) -> str:
    """Return the page with every table in its place. KeyError for a place that nothing belongs in."""
    made = tables()
    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", lambda m: _place(m[1], made[m[1]]), page, flags=re.DOTALL)


def _place(name: str, table: str) -> str:
    return f"<!-- table: {name} -->\n{table}\n<!-- end -->"


if __name__ == "__main__":
    PAGE.write_text(placed(PAGE.read_text()))
