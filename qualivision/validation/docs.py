"""Great Expectations' Data Docs as pages that fetch nothing and run no script.

Owns how they look and where they lie. What stands on them is Great Expectations': its site builder and its renderers
make the content, the templates in `data_docs/` take the place of those that load Bootstrap, jQuery and fonts from
public servers. Importing this imports Great Expectations.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from great_expectations.render.renderer.content_block import ValidationResultsTableContentBlockRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, FileSystemLoader

if TYPE_CHECKING:
    from great_expectations.data_context import AbstractDataContext

_TEMPLATES: Final = Path(__file__).with_name("data_docs")


class PageView(DefaultJinjaPageView):
    """Great Expectations' view, with our templates before its own."""

    _template = "data_docs_page.j2"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        theirs = self.env.loader
        assert theirs is not None
        self.env.loader = ChoiceLoader([FileSystemLoader(_TEMPLATES), theirs])


class RuleTable(ValidationResultsTableContentBlockRenderer):
    """Great Expectations' table of results, with each rule's name and severity as the findings have them."""

    @classmethod
    def render(cls, render_object: Any, **options: Any) -> Any:
        block: Any = super().render(render_object, **options)
        block.header_row += ["Rule", "Severity"]
        for row, result in zip(block.table, render_object, strict=True):
            attributes = result.expectation_config.meta["attributes"]
            row += [attributes["check"], attributes["severity"]]
        return block


def build(context: AbstractDataContext, folder: Path) -> None:
    """Write the pages of all suites and results in a context; a folder of that name is replaced.

    Raises:
        OSError: the folder can't be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent.absolute(), prefix=f".{folder.name}."))
    try:
        _write_site(context, made)
        made.chmod(0o755)  # mkdtemp's 0700 would keep others from reading it
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_site(context: AbstractDataContext, folder: Path) -> None:
    view = {"module_name": __name__, "class_name": PageView.__name__}
    rules = {"module_name": __name__, "class_name": RuleTable.__name__}
    renderer = {
        "class_name": "ValidationResultsPageRenderer",
        "column_section_renderer": {"class_name": "ValidationResultsColumnSectionRenderer", "table_renderer": rules},
    }
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,  # calls to action
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "view": view},
        "site_section_builders": {
            "expectations": {"view": view},
            "validations": {"view": view, "renderer": renderer},
            "profiling": "None",
        },
    }
    context.add_data_docs_site(site_name="QualiVision", site_config=site)  # type: ignore[arg-type]
    context.build_data_docs(site_names=["QualiVision"])
    context.delete_data_docs_site("QualiVision")
    for suite in context.suites.all():  # Great Expectations only logs what it could not render
        if not list(folder.glob(f"validations/{suite.name}/**/*.html")):
            raise RuntimeError(f"{suite.name}: Great Expectations rendered no page of its results")
    shutil.rmtree(folder / "static", ignore_errors=True)  # 4 MB of fonts and pictures that no page of ours shows
