"""Prompt lines say what they mean, whatever word they begin with."""

from pathlib import Path

import pytest
from PIL import Image

from ltx2_train.config import DrawSettings, SampleSettings, make_run
from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.sampling.idle_options import only_words, rounded_sizes, unused_options
from ltx2_train.sampling.prompt_files import read_library, remarks_of
from ltx2_train.sampling.prompts import parse_prompt, read_prompts
from ltx2_train.sampling.sample import _asked_strengths, tell_idle, wanted_prompts
from ltx2_train.sampling.told_prompts import describe_prompts, lacking_trigger

SETTINGS = DrawSettings(width=768, height=512, frames=49, negative_prompt="ugly")


def test_a_plain_line_takes_the_settings():
    prompt = parse_prompt("I saw n dogs -- really", SETTINGS)
    assert prompt.text == "I saw n dogs -- really"
    assert (prompt.shape.width, prompt.shape.height, prompt.shape.frames) == (768, 512, 49)
    assert prompt.negative == "ugly"


def test_options_follow_the_prompt():
    prompt = parse_prompt("A fox --w 640 --h 333 --f 30 --d 7 --s 12 --g 2.5 --r 24 --n low quality, blur", SETTINGS)
    assert prompt.text == "A fox"
    assert (prompt.shape.width, prompt.shape.height, prompt.shape.frames, prompt.shape.fps) == (640, 320, 25, 24)
    assert (prompt.seed, prompt.steps, prompt.guidance) == (7, 12, 2.5)
    assert prompt.negative == "low quality, blur"


def test_options_may_stand_before_the_prompt():
    prompt = parse_prompt("--w 256 --d 3 A cat sleeps", SETTINGS)
    assert (prompt.text, prompt.shape.width, prompt.seed) == ("A cat sleeps", 256, 3)


def test_an_option_may_have_an_equals_sign_as_in_a_shell():
    prompt = parse_prompt("A well-lit cat - 3 of them -- sleeps --w=256 --n=blur --d\t3", SETTINGS)
    assert (prompt.text, prompt.shape.width, prompt.seed) == ("A well-lit cat - 3 of them -- sleeps", 256, 3)
    assert prompt.negative == "blur"


def test_a_caption_is_all_prompt():
    assert parse_prompt("odd --w 5 caption", SETTINGS, plain=True).text == "odd --w 5 caption"


@pytest.mark.parametrize(
    "text",
    [
        "A fox -- i am here",
        "A -- as ever - a fox",
        "a fox--w, a dog--s tail, well--known 5",
        "rock -n roll. A",
        "A - 3 foxes -- 2 hens",
    ],
)
def test_hyphens_of_a_sentence_are_no_options(text):
    assert parse_prompt(text, SETTINGS).text == text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("A --w x", "number"),
        ("A --w 8", "32"),
        ("A --zz 1", "not known"),
        ("A --zz=1", "--zz is not known"),
        ("A --cfg-scale 3", "--cfg-scale is not known"),
        ("A --i no.png", "no such image"),
        ("A -w 96", r"^-w: an option begins with two hyphens. Write --w.$"),
        ("A —f=9", "—f: an option begins with two hyphens"),
        ("A ——w 96", "——w: an option begins with two hyphens"),
        ("A \u2212\u2212w 96", "w: an option begins with two hyphens. Write --w.$"),
        ("A -- w 96", r"^-- w: an option begins with two hyphens and no blank behind them. Write --w.$"),
        ("-i fox.png A", "-i: an option begins with two hyphens"),
        ("A fox--w 96", r"^--w behind 'fox': an option has a blank before it. Write fox --w.$"),
        ("in the snow.--w=96", "--w behind 'snow.'"),
        ("A\u200b--i fox.png", "--i behind 'A"),
        ("A ---w 96", r"^---w: an option begins with two hyphens. Write --w.$"),
    ],
)
def test_wrong_options_are_named(line, says):
    with pytest.raises(ConfigError, match=says):
        parse_prompt(line, SETTINGS)


def test_a_file_gives_one_prompt_a_line_and_resolves_images(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "p.txt").write_text("# note\nA fox --i a.png\n\nA hen\n", encoding="utf-8")
    prompts = read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))
    assert [prompt.text for prompt in prompts] == ["A fox", "A hen"]
    assert [(one.stream, one.path) for one in prompts[0].given] == [("video", tmp_path / "a.png")]


def test_what_begins_with_a_hash_is_a_prompt_where_it_is_no_line_of_a_file():
    prompts = read_prompts(DrawSettings(prompts=["#1 fan of a fox", "A hen"]))
    assert [prompt.text for prompt in prompts] == ["#1 fan of a fox", "A hen"]


def test_an_error_in_a_file_names_the_line(tmp_path):
    (tmp_path / "p.txt").write_text("A fox\nA hen --f 9x\n")
    with pytest.raises(ConfigError, match=r"p\.txt, line 2"):
        read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "p.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"fox": "A fox --d 3", "hen": "A hen"}'),
        ("p.json", '["A fox --d 3", {"prompt": "A hen"}]'),
        ("p.json", '[{"prompt": "A fox", "seed": 3}, {"prompt": "A hen", "enum": 1}]'),
        (
            "p.toml",
            "[prompt]\nwidth = 768\n"
            '[[prompt.subset]]\nprompt = "A fox"\nseed = 3\n[[prompt.subset]]\nprompt = "A hen"\n',
        ),
    ],
)
def test_libraries_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    prompts = read_prompts(DrawSettings(prompts=tmp_path / name, seed=1))
    assert [(prompt.text, prompt.seed, prompt.shape.width) for prompt in prompts] == [
        ("A fox", 3, 768),
        ("A hen", 1, 768),
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", "{", "not valid JSON"),
        ("p.json", "[3]", "expected prompts"),
        ("p.json", '[{"seed": 3}]', "needs a prompt"),
        ("p.json", '[{"prompt": "x", "sede": 3}]', "sede is not known"),
        ("p.toml", "prompt = 3", r"\[prompt\]"),
        ("p.csv", "prompt\nA fox", "is a table"),
    ],
)
def test_a_wrong_library_says_what_is_wrong(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_prompts(DrawSettings(prompts=tmp_path / name))


@pytest.mark.parametrize("line", ["A fox --w 512 --w 768", "A fox --g 3 --l 4", "A fox --n red --d 1 --n red"])
def test_an_option_that_is_given_twice_is_refused(line):
    with pytest.raises(ConfigError, match="twice"):
        parse_prompt(line, SETTINGS)
    assert parse_prompt("A fox --g 4 --l 4", SETTINGS).guidance == 4, "two names of one number, as other programs have"


@pytest.mark.parametrize(
    ("line", "says"),
    [("--n blurry --w 64", "the prompt is empty"), ("A fox <lora:fox:0.8> runs", "<lora:fox:0.8>: a prompt loads no")],
)
def test_what_no_prompt_can_do_is_refused(line, says):
    with pytest.raises(ConfigError, match=says):
        parse_prompt(line, SETTINGS)


@pytest.mark.parametrize("form", ["(red fox:1.3)", "{red|blue}", "__animal__"])
def test_weights_and_choices_of_words_are_told(form):
    plain = DrawSettings()
    told = unused_options(plain, plain, [parse_prompt(f"A {form} runs (at 10:30 or so) --g 4", plain)])
    assert [text.startswith(repr(form)) for text in told if "read as words" in text] == [True]


def test_prompts_in_utf_16_are_read_by_their_byte_order_mark(tmp_path):
    (tmp_path / "p.txt").write_text("A caf\u00e9\n# later\nA hen\n", encoding="utf-16", newline="\r\n")
    assert [one.text for one in read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))] == ["A caf\u00e9", "A hen"]
    assert remarks_of(tmp_path / "p.txt") == ["# later"]


def test_a_prompt_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"A fox\nA\0 hen\n")
    with pytest.raises(ConfigError, match=r"p\.txt, line 2: .* no text"):
        read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))


def test_sizes_that_no_sample_can_have_are_named():
    lines = ["a fox --w 65 --h 64 --f 12", "a hen --w 65", "a cow --w 64 --h 96 --f 9"]
    prompts = [parse_prompt(line, DrawSettings(width=64, height=64, frames=9)) for line in lines]
    assert rounded_sizes(prompts, "av") == [
        "width 65 of a sample is not a multiple of 32; 64 is drawn instead.",
        "frames 12 of a sample is not 8n+1; 9 is drawn instead.",
    ]
    assert len(rounded_sizes(prompts, "audio")) == 1, "a sound has a length alone"
    assert rounded_sizes(prompts[2:], "av") == []


def test_settings_that_no_prompt_uses_are_named(tmp_path):
    plain = DrawSettings(guidance=1, stg=0, negative_prompt="ugly", rescale=0.5, include_reference=True, image_crf=0)
    prompts = [parse_prompt("A fox", plain)]
    named = [line.split()[0] for line in unused_options(plain, plain, prompts)]
    assert named == ["sample.negative_prompt", "sample.rescale", "sample.include_reference", "sample.image_crf"]
    prompts.append(parse_prompt("A hen --g 3", plain))
    named = [line.split()[0] for line in unused_options(plain, plain, prompts)]
    assert named == ["sample.include_reference", "sample.image_crf"]
    mute = DrawSettings(audio="off", guidance=1, stg=0)
    said = SampleSettings(audio="off", guidance=1, stg=0)
    assert unused_options(said, mute, [parse_prompt("A fox", mute)]) == []
    assert unused_options(said, mute, [parse_prompt("A fox", mute)], "audio") == [
        "sample.audio = off has no effect: model.mode is audio, and samples are sound alone."
    ]
    crf = DrawSettings(image_crf=10)
    assert unused_options(crf, crf, [parse_prompt("A fox", crf)]) == [
        "sample.image_crf has no effect: no sample begins with a picture (--i)."
    ]
    Image.new("RGB", (64, 64)).save(tmp_path / "fox.png")
    assert unused_options(crf, crf, [parse_prompt(f"A fox --i {tmp_path / 'fox.png'}", crf)]) == []
    off, none = DrawSettings(every=0, negative_prompt="ugly"), SampleSettings(every=0, negative_prompt="ugly")
    assert unused_options(none, off, []) == [
        "sample.negative_prompt has no effect in training: no samples are drawn (sample.every is 0); "
        "`ltx2-train sample` draws with what is set."
    ]
    assert unused_options(none, off, prompts[:1]) == [  # they are drawn, whatever is drawn in training
        "sample.negative_prompt has no effect: no sample is drawn with a guidance other than 1."
    ]
    bare = DrawSettings(guidance=1, stg=0)
    lines = [parse_prompt(line, bare) for line in ("A fox --n ugly", "A hen --n ugly --g 3", "A cow")]
    assert unused_options(SampleSettings(guidance=1, stg=0), bare, lines) == [
        "--n of 'A fox' has no effect: it is drawn with a guidance of 1. Raise it (--g)."
    ]
    given = SampleSettings(guidance=1, stg=0, modality_guidance=1)
    all_of_them = DrawSettings.of(given, "2.5")
    assert unused_options(given, all_of_them, [parse_prompt("A fox", all_of_them)]) == []  # of what nobody set


def test_what_is_for_a_picture_is_named_where_sound_alone_is_drawn(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "fox.png")
    settings = DrawSettings(guidance=1, stg=0, audio_guidance=1)
    lines = [parse_prompt(f"A fox --w 64 --g 3 --n ugly --i {tmp_path / 'fox.png'}", settings)]
    assert unused_options(settings, settings, lines) == []
    assert unused_options(settings, settings, lines, "audio") == [
        "--n of 'A fox' has no effect: it is drawn with a guidance of 1. Raise it (--g).",
        "sample.guidance has no effect: model.mode is audio, where sample.audio_guidance counts.",
        "--w, --g, --i fox.png of 'A fox' have no effect: model.mode is audio.",
    ]
    plain = DrawSettings(guidance=1, audio_guidance=3)
    assert unused_options(SampleSettings(), plain, [parse_prompt("A fox", plain)], "audio") == []


@pytest.mark.parametrize("what", ["lora", "full"])
def test_a_strength_is_told_where_no_lora_is_given_and_nowhere_else(what):
    run, heard = make_run({"train": {"what": what}, "sample": {"strength": 0.5}}), []
    events = Events()
    events.message = lambda text, level="info": heard.append(text)
    drawn = [parse_prompt("A fox", DrawSettings())]
    tell_idle(run, run.sample, drawn, Path("x.safetensors"), events)
    assert not [text for text in heard if "strength" in text]
    tell_idle(run, run.sample, drawn, None, events)
    assert [text for text in heard if "strength" in text] == [
        "sample.strength = 0.5 has no effect: no LoRA is given (--lora)."
    ]


def test_an_empty_prompt_of_a_list_is_refused_and_a_blank_line_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"prompts: holds an empty text"):
        make_run({"sample": {"prompts": ["a fox", ""]}})
    settings = DrawSettings.of(make_run({}).sample.model_copy(update={"prompts": ["a fox", " "]}), "2.3")
    with pytest.raises(ConfigError, match=r"sample\.prompts, line 2: the prompt is empty"):
        read_prompts(settings)
    (tmp_path / "p.txt").write_text("a fox\n\na dog\n")
    lines = DrawSettings.of(make_run({}).sample.model_copy(update={"prompts": tmp_path / "p.txt"}), "2.3")
    assert [prompt.text for prompt in read_prompts(lines)] == ["a fox", "a dog"]


def test_strengths_of_one_name_are_drawn_once():
    asked = _asked_strengths(make_run({}), Path("fox.safetensors"), [1, 1.0000001, 0.5, -1, -1.0])
    assert asked == (1.0, 0.5, -1.0)


def test_a_file_in_place_of_a_prompt_is_no_prompt(tmp_path):
    (path := tmp_path / "p.txt").write_text("A fox")
    with pytest.raises(ConfigError, match=r"p\.txt is a file\. To draw the prompts in it, set sample\.prompts"):
        wanted_prompts(make_run({}), [str(path)], "2.3")
    assert wanted_prompts(make_run({}), ["A fox"], "2.3")[1][0].text == "A fox"


def test_what_stands_beside_the_table_of_prompts_is_refused():
    text = 'width = 96\n[prompt]\nheight = 64\n[[prompt.subset]]\nprompt = "one"\n[[prompts]]\nprompt = "two"\n'
    with pytest.raises(ConfigError, match=r"p.toml: width, prompts at the top has no use beside \[prompt\]"):
        read_library("p.toml", text, ".toml")


def test_every_wrong_line_is_told_at_once(tmp_path):
    (tmp_path / "p.txt").write_text("A fox --w x\nA hen\nA cow--h 64\n")
    with pytest.raises(ConfigError) as caught:
        read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))
    assert str(caught.value).splitlines() == [
        "p.txt, line 1: --w 'x': expected a number.",
        "p.txt, line 3: --h behind 'cow': an option has a blank before it. Write cow --h.",
    ]


def test_json_in_a_text_file_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text('["A fox",\n "A hen"]')
    with pytest.raises(ConfigError, match=r"p\.txt holds JSON"):
        read_prompts(DrawSettings(prompts=tmp_path / "p.txt"))


def test_what_is_hardly_a_prompt_is_told():
    texts = ["1. a fox", '"a fox"', "// c", "; c", "[trigger] a fox", "a fox \\", 'a fox says "hi"', "# 1", '["a",']
    told = only_words([parse_prompt(text, SETTINGS) for text in texts])
    assert [text.split(" (")[0] for text in told] == [f"Sample prompt {number}" for number in (1, 2, 3, 4, 5, 6, 8, 9)]
    assert told[0] == "Sample prompt 1 ('1. a fox') looks like an entry of a list: it is read as it stands."
    assert "is read with its quotes" in told[1]
    again = [parse_prompt(text, SETTINGS) for text in ("A fox", "A fox --d 7", "A fox", "A fox --d 42")]
    numbered = [parse_prompt(text, SETTINGS) for text in ("1. Fox", "2) Hen")]
    assert only_words(numbered)[0].startswith("All sample prompts begin with their numbers")
    assert only_words(again) == [
        f"Sample prompt {number} ('A fox') is the same as 1, and is drawn again." for number in (3, 4)
    ]


def test_prompts_are_described_with_what_is_their_own(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    lines = ["A fox --w 96 --h 64 --i a.png", "A hen --g 1 --f 1"]
    prompts = [parse_prompt(line, SETTINGS, tmp_path) for line in lines]
    assert describe_prompts(prompts, "video").splitlines() == [
        "Prompts of samples as they are read (seed 42, 30 steps):",
        '  prompt 1: "A fox" 96x64, 49 frames at 25 a second, guidance 4; its own: width, height, '
        'image; given: --i a.png; negative prompt: "ugly"',
        '  prompt 2: "A hen" 768x512, 1 frame, guidance 1; its own: guidance, frames',
    ]
    many = describe_prompts(prompts[:1] * 20, "audio").splitlines()
    assert many[-2:] == ["  and 8 more", '  negative prompt of each: "ugly"']
    assert "96x64" not in many[1]


def test_lines_of_a_file_that_are_no_prompts_are_counted(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("#1 fan of a fox\nA hen\n  # note\n")
    prompts = read_prompts(DrawSettings(prompts=file))
    told = describe_prompts(prompts, "video", file)
    assert told.endswith('  lines that begin with #, which are no prompts: 2; the first: "#1 fan of a fox"')
    assert "no prompts" not in describe_prompts(prompts, "video", ["#1 fan of a fox", "A hen"])


def test_prompts_without_the_trigger_word_are_told():
    prompts = [parse_prompt(text, SETTINGS) for text in ("A fox", "A hen")]
    assert lacking_trigger(prompts, ["ohwx"]).startswith("No sample prompt has the trigger word ('ohwx')")
    assert lacking_trigger([*prompts, parse_prompt("an OHWX fox", SETTINGS)], ["ohwx"]) == ""
    assert lacking_trigger(prompts, []) == lacking_trigger([], ["ohwx"]) == ""
