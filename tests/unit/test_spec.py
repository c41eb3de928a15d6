"""Job files: what is accepted, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from jobs.errors import SpecError
from jobs.spec import parse_spec

MINIMAL = "name: a\nprogram: {module: rexnet.train}\n"


@pytest.mark.parametrize("path", sorted(Path(jobs.__file__).parent.glob("recipes/*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_ours_is_valid(path: Path) -> None:
    assert parse_spec(path.read_text()).name == path.stem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + "gang: {noodes: 2}", "unknown key gang.noodes (did you mean nodes? valid keys: nodes, workers"),
        (MINIMAL + "prioritty: 2", "unknown key prioritty (did you mean priority? valid keys: name, priority"),
        (MINIMAL + "gang: {nodes: two}", "gang.nodes: input should be a valid integer, got 'two'"),
        (MINIMAL + "gang: {nodes: 0}", "gang.nodes: input should be greater than or equal to 1, got 0"),
        (MINIMAL + "gang: {device: gpu}", "gang.device: input should be 'cpu' or 'npu', got 'gpu'"),
        ("program: {module: a}", "key name is missing"),
        ("name: a\nprogram: {}", "program: needs exactly one of: module, script"),
        (MINIMAL + "data: {dir: relative}", "data.dir: string should match pattern"),
        (MINIMAL + "data: {dir: /a, builtin: digits}", "data: takes one of: dir, builtin"),
        (MINIMAL + "env: {AWS_SECRET_ACCESS_KEY: x}", "looks like a secret; name it in credentials.from_env"),
        (MINIMAL + "env: {REX_JOB: x}", "belongs to the control plane"),
        (MINIMAL + "credentials: {from_env: [a b]}", "give names, never values"),
        ("- a", "holds list, not keys"),
        ("a: {", "is not YAML"),
        ("", "holds NoneType, not keys"),
    ],
)
def test_mistakes_get_one_sentence_with_the_key_and_what_is_valid(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "job.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secret_value_in_env_is_not_repeated_in_the_error() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(MINIMAL + "env: {MY_TOKEN: hunter2}")
    assert "hunter2" not in str(caught.value)
