"""The pages in docs/ that are made of the settings say what the settings say."""

from pathlib import Path

from ltx2_train.config import walk_settings
from ltx2_train.config.reference import names_tables, settings_page

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_of_settings_is_what_the_program_prints():
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run: ltx2-train config --reference > docs/settings.md"


def test_the_page_of_other_trainers_has_every_name():
    page = (DOCS / "other_trainers.md").read_text(encoding="utf-8")
    assert names_tables() in page, (
        "put what `ltx2-train config --names` prints below the text of docs/other_trainers.md"
    )


def test_every_setting_is_on_the_page():
    page = settings_page()
    assert [dotted for dotted, _ in walk_settings() if f"| `{dotted.rsplit('.', 1)[1]}` |" not in page] == []
    assert "| `rank` | `32` | whole number, >= 1, <= 1024 |" in page
    assert "`network_dim`, `lora.rank`, `lora_rank` (S) | 0.1 |" in page
