"""Files of other programs as run files: taken over, accounted for line by line, and refused as a whole."""

import pytest
from unit.config.community_files import COMMAND, DATASET, saved_command, written

from ltx2_train.config import load_run, make_run
from ltx2_train.config.command_file import read_commands
from ltx2_train.config.importing import import_settings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError


@pytest.fixture
def command(tmp_path):
    return saved_command(tmp_path)


def test_a_saved_command_trains_as_it_is(command, tmp_path):
    run = load_run(command)
    assert (run.lora.rank, run.lora.effective_alpha, run.train.learning_rate) == (32, 16.0, 1e-4)
    assert (run.model.mode, run.model.version, run.quant.format, run.gemma.precision) == ("av", "2.3", "fp8", "8bit")
    assert run.model.checkpoint == tmp_path / "models" / "ltx-2.3.safetensors"
    assert run.data.config == tmp_path / "dataset.toml"
    assert (run.sample.every_epochs, run.sample.tiles.temporal_tile) == (5, 48)
    assert any("sample_with_offloading" in note for note in run.notes)


def test_what_a_file_leaves_open_is_as_the_other_program_has_it(command):
    run = load_run(command)
    assert (run.train.steps, run.schedule.name, run.schedule.warmup) == (1600, "constant", 0)
    assert (run.train.first_frame_probability, run.train.caption_dropout) == (0.1, 0.0)
    assert run.sample.every == 0  # samples were asked for by epochs alone
    assert any(note.startswith("Not given, so as the community trainer has it: ") for note in run.notes)
    assert load_run(command, ["train.steps=5", "network_dim=8"]).lora.rank == 8


def test_import_writes_files_that_read_back_as_the_same_run(command, tmp_path):
    made = import_settings(command)
    run_file, dataset_file = sorted(made.write(tmp_path / "out"), reverse=True)
    run, before = load_run(run_file), load_run(command)
    same = {"run", "lora", "objective", "optimizer", "schedule", "train", "quant", "memory", "gemma"}
    assert {group: getattr(run, group) for group in same - {"run"}} == {
        group: getattr(before, group) for group in same - {"run"}
    }
    assert run.model.checkpoint.resolve() == before.model.checkpoint.resolve()
    (entry,) = DatasetConfig.read(dataset_file).datasets
    assert entry.video_directory.resolve() == tmp_path / "videos"
    assert entry.caches.resolve() == tmp_path / "cache"
    assert made.complete


def test_every_name_of_the_source_stands_in_what_is_written(command, tmp_path):
    made = import_settings(command)
    text = made.run_toml(tmp_path)
    names = [name for program in read_commands(COMMAND).commands for name, _ in program.flags]
    assert [name for name in names if name not in text] == []
    assert "rank = 32  # network_dim" in text
    assert 'format = "fp8"  # fp8_base, fp8_scaled' in text
    assert "#   sample_tiled_vae = true: samples are always decoded in tiles" in text
    assert "steps = 1600  # not given; this is what the community trainer takes" in text


def test_files_that_are_there_are_not_written_over(command, tmp_path):
    made = import_settings(command)
    made.write(tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        made.write(tmp_path / "out")
    assert len(made.write(tmp_path / "out", replace=True)) == 2
    before = (tmp_path / "dataset.toml").read_bytes()
    for one in (made, import_settings(tmp_path / "dataset.toml")):
        with pytest.raises(ConfigError, match=r"dataset\.toml is a file that is taken over, and stays as it is"):
            one.write(tmp_path, replace=True)
    assert (tmp_path / "dataset.toml").read_bytes() == before
    assert not (tmp_path / "run.toml").exists()


def test_all_that_is_not_there_yet_is_told_at_once(tmp_path):
    path = written(
        tmp_path,
        "flags.toml",
        "network_dim = 8\nsample_two_stage = true\nxformers = true\nsave_state_to_huggingface = true\n"
        "learing_rate = 1e-4\nnf4_block_size = 33\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    text = str(caught.value)
    for words in (
        "sample_two_stage is replaced: set sample.upsampler",
        "xformers is not there yet",
        "save_state_to_huggingface",
        "learing_rate: unknown",
    ):
        assert words in text
    assert "did you mean" not in text.split("learing_rate")[0]
    assert "Did you mean learning_rate" in text
    assert "quant.block_size: must be one of 32, 64, 128, 256" in text
    assert "ltx2-train import flags.toml" in text


def test_import_leaves_out_what_is_not_there_yet_and_says_so(tmp_path):
    path = written(
        tmp_path, "flags.toml", 'network_dim = 8\nsample_two_stage = true\nnf4_block_size = 33\nmax_train_steps = "x"\n'
    )
    made = import_settings(path)
    assert not made.complete
    text = made.run_toml(tmp_path)
    assert "rank = 8" in text
    assert "#   sample_two_stage = true: " in text
    assert "#   nf4_block_size = 33: quant.block_size: must be one of 32" in text
    assert "#   max_train_steps = x: train.steps: needs a whole number" in text
    assert load_run(made.write(tmp_path / "out")[-1]).lora.rank == 8


@pytest.mark.parametrize(
    "text",
    [
        'network_dim = 16\nlearning_rate = 3e-4\nnetwork_module = "networks.lora_ltx2"\nsdpa = true\n',
        "[network]\nnetwork_dim = 16\n[whatever]\nlearning_rate = 3e-4\n",
        '[optimizer]\noptimizer_type = "AdamW8bit"\n[train]\nlearning_rate = 3e-4\n[lora]\nnetwork_dim = 16\n',
    ],
)
def test_a_toml_of_the_community_trainer_is_taken_as_it_is(tmp_path, text):
    run = load_run(written(tmp_path, "config.toml", text))
    assert (run.lora.rank, run.train.learning_rate) == (16, 3e-4)
    assert run.lora.effective_alpha == 1  # its default, which is no good one, but its


def test_a_run_file_of_our_own_keeps_our_defaults(tmp_path):
    run = load_run(written(tmp_path, "run.toml", "[lora]\nrank = 8\n[train]\nlearning_rate = 3e-4\nseed = 1\n"))
    assert (run.lora.effective_alpha, run.train.steps) == (8.0, 2000)
    run = load_run(written(tmp_path, "run.toml", "[train]\nlearning_rate = 3e-4\nseed = 1\n"))
    assert run.train.steps == 2000


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.toml", DATASET, "is a dataset file"),
        ("x.json", '{"a": 1}', "is not SimpleTuner's config.json"),
        ("x.yaml", "job: extension\nconfig: {}\n", "ai-toolkit"),
        ("x.toml", "epochs = 9\nmicro_batch_size_per_gpu = 1\n[model]\ntype = 'ltx-video'\n", "diffusion-pipe"),
        ("x.toml", "resolutions = [512]\n[[directory]]\npath = 'clips'\n", "diffusion-pipe"),
        ("x.yaml", "a: [", "is not valid YAML"),
        ("x.sh", "echo hello\n", "no command with flags"),
        ("x.safetensors", "", "ends in none of"),
    ],
)
def test_files_that_are_no_run_files_say_what_they_are(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says):
        load_run(written(tmp_path, name, text))


def test_a_toml_of_no_program_is_not_called_a_run_file(tmp_path):
    with pytest.raises(ConfigError, match="no program that is read, and no run file: foo, bar are no groups"):
        import_settings(written(tmp_path, "x.toml", "foo = 1\n[bar]\nx = 2\n"))
    with pytest.raises(ConfigError, match="is a run file of this program already"):
        import_settings(written(tmp_path, "x.toml", "[lora]\nrank = 2\n"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"resume": "x-state"}, "resume is replaced: start the same run again"),
        ({"network_module": "networks.oft"}, "network_module is not there yet: networks other than"),
        ({"optimizer_type": "Lion"}, "optimizer_type is not there yet"),
        ({"network_args": ["algo=lokr", "x"]}, "network_args: 'x' is not of the form key=value"),
        ({"datasets": []}, "datasets: belongs to the dataset file"),
        ({"lora": {"resolution": 5}}, "lora.resolution: unknown setting"),
        ({"resolution": 512}, "resolution: unknown setting. It belongs to the dataset file"),
        ({"network": {"network_dim": 8, "foo": 1}}, r"network\.foo: unknown setting"),
    ],
)
def test_names_that_cannot_be_taken_over_are_refused_by_name(flags, says):
    with pytest.raises(ConfigError, match=says):
        make_run(flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"validate_every_n_steps": 0, "crepa": False, "huggingface_repo_id": "", "sample_two_stage": False},
        {"network_args": ["include_patterns=['.*to_k$']", "loraplus_lr_ratio=4"]},
        {"network_module": "networks.lora_ltx2", "save_state": True, "autoresume": True},
    ],
)
def test_what_is_off_is_no_matter(flags):
    make_run(flags)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.yaml", "model: 5\nlora: [1]\noptimization: {scheduler_type: step, steps: x}\nvalidation: {samples: 5}"),
        ("b.json", [{"instance_data_dir": 5, "dataset_type": "video", "video": 7, "repeats": "x"}]),
        (
            "o.sh",
            "python ltx2_train_network.py --network_args x --lr_args --optimizer_args weight_decay=0.1 --network_dim",
        ),
    ],
)
def test_values_that_make_no_sense_are_named_and_left_out(tmp_path, name, text):
    made = import_settings(written(tmp_path, name, text))
    assert not made.complete
    run = load_run(made.write(tmp_path / "out")[-1])
    assert run.optimizer.args in ({}, {"weight_decay": 0.1})


def test_settings_of_a_dataset_without_a_dataset_file_are_not_dropped(tmp_path):
    path = written(
        tmp_path,
        "config.json",
        '{"model_family": "ltxvideo2", "train_batch_size": 4, "resolution": 512, "lora_rank": 8}',
    )
    made = import_settings(path)
    assert any(problem.startswith("train_batch_size: put `batch_size = 4` into") for problem in made.problems)
    assert any(problem.startswith("resolution: put `resolution = ") for problem in made.problems)
    assert not made.complete


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.json",
            '{"model_family": "ltxvideo2", "lora_rank": 4, "lora_rank": 8}',
            "'lora_rank' stands twice .* 4 and as 8",
        ),
        (
            "a.yaml",
            "model: {model_path: m}\nlora:\n  rank: 4\n  alpha: 4\n  rank: 8\n",
            "rank stands twice .* lines 3 and 5: 4 and 8",
        ),
        ("a.toml", "network_dim = 4\nnetwork_dim = 8\n", "network_dim stands twice"),
        (
            "b.json",
            '{"datasets": [{"video_directory": "a", "video_directory": "b"}]}',
            "'video_directory' stands twice",
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says):
        import_settings(written(tmp_path, name, text))
