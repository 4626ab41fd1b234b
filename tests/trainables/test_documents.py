"""YAML 1.2 as the project reads it, and the faults of values that a model refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc.documents import Place, dotted, dump_document, load_document, parse_document, parse_value
from cadloc.faults import validate

GATE = "scene: {name: gate, built_in: true}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("+3", 3), ("010", 10), ("0x10", 16),
        ("0o17", 15),
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("y", "y"), ("true", True), ("FALSE", False), ("~", None),
        ("null", None),
        ("1_000", "1_000"), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("0b1", "0b1"), ("'1'", "1"),
        ("-.inf", -math.inf), ("[1, a]", [1, "a"]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("v1.2", "v1.2"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    """A scalar has the type that YAML 1.2's core schema gives it."""
    read = parse_value(text, "here")
    assert read == value
    assert type(read) is type(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"[a-z0-9.~+-]{1,8}", fullmatch=True), json_values, max_size=4))
def test_written_values_are_read_back(data: dict[str, object]) -> None:
    """Whatever is written is read back unchanged, words that look like numbers too."""
    assert parse_document(dump_document(data, "why?"), "here").data == data


def test_every_value_knows_its_line() -> None:
    """Keys and items stand at the line on which they begin, and a missing key at its nearest surrounding one."""
    document = parse_document("a: 1\nb:\n  - x\n  - c: 2\n    d: 3\n", "here")
    lines = [document.line_of(path) for path in [("a",), ("b", 0), ("b", 1, "d"), ("b", 1, "absent", "deeper")]]
    assert lines == [1, 3, 5, 4]
    assert dotted(("b", 1, "d")) == "b[1].d"


def test_first_comment_is_the_question() -> None:
    """The comment at the top is kept, later ones are not."""
    assert parse_document("# Is it\n# so?\n\n# no\na: 1 # no\n", "here").comment == "Is it so?"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: 1\na: 2\n", "second time"), (b"a: [1\n", "YAML 1.2"), (b"", "empty"), (b"a: \xff\n", "UTF-8"),
        (b"1: a\n", "not a word"),
        (b"a: !!python/object:os.system x\n", "tag"), (b"a: &x [*x]\n", "without end"),
        (b"a: !!int x\n", "type int"),
        (b"a: *unknown\n", "alias"), (b"a: 1\n---\nb: 2\n", "document"), (b"\x00\n", "YAML"),
        (b"a: " + b"9" * 5000, "type int"),
        (b"a: &a [x,x,x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         b"d: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n", "without end"),
        (b"a: " + b"[" * 500, "deep"),
    ],
)  # fmt: skip
def test_unreadable_files_are_faults(tmp_path: Path, content: bytes, word: str) -> None:
    """What is not a YAML 1.2 document of plain values is a fault that names the file, never another exception."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        load_document(path)
    assert {fault.file for fault in caught.value.faults} == {str(path)}


def test_missing_file_is_a_fault(tmp_path: Path) -> None:
    """A file that is not there, and a folder, are faults."""
    for place in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError):
            load_document(place)


@pytest.mark.parametrize(
    ("text", "key", "found", "word"),
    [
        ("loss: {name: reprojection, nmae: 1}", "loss.nmae", "an unknown key", "did you mean 'name'?"),
        ("loss: {nmae: reprojection}", "loss.nmae", "an unknown key", "did you mean 'name'?"),
        ("loss: {name: reproj}", "loss.name", "'reproj'", "did you mean 'reprojection'?"),
        ("loss: reprojection", "loss", "'reprojection'", "write {name: reprojection}"),
        ("loss: {at: 0.3}", "loss.name", "nothing", "switching"),
        ("loss:", "loss", "nothing", "a mapping"),
        ("head: {name: ace, homogeneous: no}", "head.homogeneous", "'no'", "true or false"),
        ("training: {iterations: '10'}", "training.iterations", "'10'", "a whole number"),
        ("training: {iterations: 1.5}", "training.iterations", "1.5", "a whole number"),
        ("training: {iterations: true}", "training.iterations", "true", "a whole number"),
        ("training: {learning_rate: .nan}", "training.learning_rate", "nan", "finite"),
        ("training: {learning_rate: 0}", "training.learning_rate", "0", "greater than 0"),
        (
            "views: {viewpoints: {orbit: {elevations_deg: [4, 99]}}}",
            "views.viewpoints.orbit.elevations_deg[1]",
            "99",
            "85",
        ),
        ("localization: {solver: poselip}", "localization.solver", "'poselip'", "did you mean 'poselib'?"),
        ("domains: [synthetc]", "domains[0]", "'synthetc'", "did you mean 'synthetic'?"),
        ("trainig: {}", "trainig", "an unknown key", "did you mean 'training'?"),
    ],
)
def test_one_typo_is_one_fault(text: str, key: str, found: str, word: str) -> None:
    """A wrong key or value is told once, where it stands, with what is allowed and the likeliest meaning."""
    with pytest.raises(InputError) as caught:
        validate(TrialConfig, parse_document(GATE + text, "trial.yaml"))
    (fault,) = caught.value.faults
    assert (fault.file, fault.line, fault.key, fault.found) == ("trial.yaml", 2, key, found)
    assert word in str(fault)


def test_a_required_key_that_is_misspelt_is_one_fault() -> None:
    """A misspelt required key is told as such, not also as missing; a plain union speaks once for all its branches."""
    text = "scene: {name: x, cad: {path: a, upp: z, units: km}}"
    with pytest.raises(InputError) as caught:
        validate(TrialConfig, parse_document(text, "trial.yaml"))
    assert sorted(fault.key for fault in caught.value.faults) == ["scene.cad.units", "scene.cad.upp"]


def test_whole_numbers_may_be_spelled_as_floats() -> None:
    """`1e6` is a count."""
    config = validate(TrialConfig, parse_document(GATE + "buffer: {samples: 1e6}", "trial.yaml"))
    assert config.buffer.samples == 1_000_000


def test_a_value_laid_on_top_brings_its_place() -> None:
    """An overridden value, and everything below it, stands where the override says."""
    document = parse_document("a: {b: 1}\n", "here").with_value(("a", "c", "d"), {"e": 2}, Place("--set"))
    assert document.data == {"a": {"b": 1, "c": {"d": {"e": 2}}}}
    assert document.place(("a", "c", "d", "e")) == Place("--set")
    assert document.place(("a", "b")) == Place("here", 1)
    with pytest.raises(KeyError):
        document.with_value(("a", "b", "x"), 1, Place("--set"))
