"""Pages that must say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs import contract
from jobs.spec import JobSpec
from orchestrator.settings import Settings
from tools import exits_page
from tools.state_page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_states_page_is_the_tables_own_drawing() -> None:
    assert (DOCS / "states.md").read_text() == page(), "run `make docs`"


def test_exits_page_is_the_tables_own_print() -> None:
    assert (DOCS / "exits.md").read_text() == exits_page.page(), "run `make docs`"


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        found += keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("key", keys(JobSpec))
def test_every_key_of_the_job_file_is_explained(key: str) -> None:
    assert f"| `{key}` |" in (DOCS / "job-file.md").read_text()


@pytest.mark.parametrize("key", list(Settings.model_fields))
def test_every_setting_is_explained(key: str) -> None:
    assert key in (DOCS / "cluster.md").read_text()


@pytest.mark.parametrize("name", [value for key, value in vars(contract).items() if key.startswith("ENV_")])
def test_every_environment_name_of_the_contract_is_explained(name: str) -> None:
    assert f"`{name}`" in (DOCS / "contract.md").read_text()
