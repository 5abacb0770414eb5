"""Every flag and key of other programs: known, and true about the settings it speaks of."""

from pathlib import Path

import pytest

from ltx2_train.config import walk_settings
from ltx2_train.config.converters import _CONVERTERS
from ltx2_train.config.read import tomllib
from ltx2_train.config.translate import find_row, known_names
from ltx2_train.dataset.entry import DatasetSettings
from ltx2_train.dataset.foreign_keys import RUN_SECTIONS
from ltx2_train.foreign import PROGRAMS, defaults_of, program_rows, row_of, topics

NAMES = tomllib.loads((Path(__file__).parent / "seed_names.toml").read_text(encoding="utf-8"))
ROWS = [(program, row) for program in PROGRAMS for row in program_rows(program).values()]
SETTINGS = {dotted for dotted, _ in walk_settings()}
SWITCHES = {  # words that a group turns into its own
    "quant.fp8_base", "quant.fp8_scaled", "quant.nf4_base", "memory.sdpa", "memory.flash_attn", "memory.flash3",
    "gemma.gemma_load_in_8bit", "gemma.gemma_load_in_4bit", "gemma.gemma_bnb_4bit_disable_double_quant",
    "gemma.load_text_encoder_in_8bit", "prompt.n", "prompt.v",
    "prompt.ra",
}  # fmt: skip
# How many names are not there yet. It may only fall: whoever adds a setting flips its rows and lowers the number.
NOT_YET = 48


@pytest.mark.parametrize("program", ["community", "official", "simpletuner", "simpletuner_data"])
def test_every_name_has_a_row(program):
    assert [name for name in NAMES[program] if find_row(program, name) is None] == []


def test_every_key_of_their_dataset_files_is_ours():
    known = set(DatasetSettings.model_fields)
    assert [name for name in NAMES["community_dataset"] if name not in known] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_say_one_thing_and_speak_of_settings_that_are_there(program):
    for row in program_rows(program).values():
        outcomes = [row.takes, row.dataset, row.run, row.command, row.no_effect, row.instead, row.later]
        assert sum(map(bool, outcomes)) <= 1, row.name
        assert any(outcomes) or row.by, row.name
        assert set(row.takes) <= SETTINGS | SWITCHES, row.name
        assert not row.dataset or row.dataset in DatasetSettings.model_fields, row.name
        assert not row.run or row.run in SETTINGS, row.name
        assert not row.later or row.later in topics(), row.name
        assert not row.otherwise or row.otherwise in topics(), row.name
        if program not in ("simpletuner_data", "dataset_keys"):
            assert not row.by or row.by in _CONVERTERS, row.name
        for text in (row.no_effect, row.instead):
            assert not text.endswith("."), row.name


def test_other_names_of_settings_lead_to_settings():
    strange = {name: find_row("community", name) for name in known_names("community")}
    assert [name for name, row in strange.items() if row.takes and not set(row.takes) <= SETTINGS | SWITCHES] == []


def test_what_other_programs_take_where_nothing_is_said_are_settings():
    for program in PROGRAMS:
        assert set(defaults_of(program)) <= SETTINGS


def test_not_yet_shrinks_as_settings_appear():
    later = [f"{program}: {row.name}" for program, row in ROWS if row.later]
    assert len(later) <= NOT_YET, "a new row is not there yet; or lower NOT_YET to the number of such rows"
    for name, topic in topics().items():
        for beginning in topic["settings"]:
            there = [
                setting for setting in SETTINGS if f"{setting}.".startswith(f"{beginning}.") or setting == beginning
            ]
            waiting = [f"{program}: {row.name}" for program, row in ROWS if row.later == name]
            assert not (there and waiting), (
                f"{there[0]} is there: flip rows of foreign/*.toml that say later = {name!r} to takes = ... "
                f"({', '.join(waiting[:5])} ...), or take {beginning!r} out of topics.toml if it is something else"
            )


def test_every_topic_is_waited_for():
    used = {row.later for _, row in ROWS} | {row.otherwise for _, row in ROWS}
    assert set(topics()) - used == set()


def test_dataset_files_know_the_sections_of_run_files():
    assert set(RUN_SECTIONS) == {dotted.split(".")[0] for dotted in SETTINGS}
    assert row_of("dataset_keys", "network_dim").run == "lora.rank"
